// What a number alone would not show: a chart of an answer, the hours of a week, and the four times of a session's end.

const TONES = ["one", "two", "three", "four", "five"]; // as many series as can be told apart

function pointTitle(text) {
  const made = shape("title", {});
  made.textContent = text;
  return made;
}

// `labels` along, one series of `values` each (null: none), as bars or lines.
function chart(root, data) {
  const width = 1000;
  const height = 260;
  const low = Math.min(0, data.least);
  const span = data.most - low || 1;
  const y = (value) => height - 4 - ((value - low) / span) * (height - 12);
  const count = data.labels.length;
  const step = width / Math.max(1, count);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": data.label });
  for (let line = 0; line <= 4; line += 1) svg.append(shape("line", { x1: 0, x2: width, y1: y(low + (span * line) / 4), y2: y(low + (span * line) / 4), class: "rule" }));
  data.series.forEach((series, place) => {
    const tone = TONES[place];
    if (data.form === "lines") {
      let path = "";
      series.values.forEach((value, index) => {
        if (value === null) return;
        const lifted = index === 0 || series.values[index - 1] === null;
        path += `${lifted ? "M" : "L"}${((index + 0.5) * step).toFixed(1)} ${y(value).toFixed(1)}`;
      });
      svg.append(shape("path", { d: path, class: `line ${tone}`, "vector-effect": "non-scaling-stroke" }));
    }
    const breadth = data.form === "lines" ? step : (step * 0.8) / data.series.length;
    series.values.forEach((value, index) => {
      if (value === null) return;
      const x = data.form === "lines" ? index * step : index * step + step * 0.1 + place * breadth;
      const top = data.form === "lines" ? 0 : Math.min(y(value), y(0));
      const tall = data.form === "lines" ? height : Math.max(1, Math.abs(y(value) - y(0)));
      const bar = shape("rect", { x, y: top, width: breadth, height: tall, class: data.form === "lines" ? "hover" : `bar ${tone}` });
      bar.append(pointTitle(`${data.labels[index]}: ${series.shown[index]} (${series.name})`));
      svg.append(bar);
    });
  });
  const axis = element("div", "axis faint");
  axis.append(element("span", "", data.labels[0] || ""), element("span", "", count > 1 ? data.labels[count - 1] : ""));
  const legend = element("div", "legend");
  data.series.forEach((series, place) => {
    const entry = element("span", "");
    entry.append(element("span", `swatch ${TONES[place]}`), element("span", "", series.name));
    legend.append(entry);
  });
  legend.append(element("span", "faint", data.range));
  root.replaceChildren(...titled(data), legend, svg, axis);
}

const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

// One square an hour of the week, in the viewer's zone; the darker, the more statements. `counts` are by UTC hour, Monday first.
function hours(root, data) {
  const shift = data.utc ? 0 : Math.round(-new Date(data.now).getTimezoneOffset() / 60);
  const made = element("table", "hours");
  const caption = element("caption", "", data.label);
  const head = element("tr", "");
  head.append(element("td", ""));
  for (let hour = 0; hour < 24; hour += 1) {
    const name = element("th", hour % 3 === 0 ? "" : "between", String(hour));
    name.scope = "col";
    head.append(name);
  }
  const body = element("tbody", "");
  body.append(head);
  DAYS.forEach((day, row) => {
    const line = element("tr", "");
    const name = element("th", "", day);
    name.scope = "row";
    line.append(name);
    for (let hour = 0; hour < 24; hour += 1) {
      const count = data.counts[(row * 24 + hour - shift + 168) % 168];
      const strength = count === 0 || data.most === 0 ? 0 : 1 + Math.min(3, Math.floor((count / data.most) * 4));
      const square = element("td", `h${strength}`);
      square.title = `${day} ${hour}:00 to ${hour + 1}:00${data.utc ? " UTC" : ""}: ${count.toLocaleString("en")}`;
      square.append(element("span", "unheard", count.toLocaleString("en")));
      line.append(square);
    }
    body.append(line);
  });
  made.append(caption, body);
  const frame = element("div", "hours-frame");
  frame.append(made);
  root.replaceChildren(...titled(data), frame);
}

// The four times of an end, from the request to the proof, along one line.
function ending(root, data) {
  const made = element("ol", `ending ${data.proven ? "proven" : "unproven"}`);
  for (const moment of data.moments) {
    const item = element("li", moment.at === null ? "missing" : "");
    item.append(element("span", "dot"), element("span", "label", moment.label));
    const value = element("span", "clock", moment.at === null ? moment.none : wall(moment.at, data.utc).slice(11, 23));
    if (moment.at !== null) value.title = utcWords(moment.at);
    item.append(value, element("span", "faint after", moment.after));
    made.append(item);
  }
  root.replaceChildren(...titled(data), made);
}
