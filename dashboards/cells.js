// Values as ledger.py sends them -> elements. Text from events is hostile: it reaches the page through textContent alone, never as
// markup, and no element made here can load anything (no img, no link, no style from data).

const SVG = "http://www.w3.org/2000/svg";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) put(made, text);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

// `<U+001B>` stands for a character that cannot be seen (words.visible): set apart, so that it is not taken for part of the text.
function put(made, text) {
  const parts = String(text).split(/(<U\+[0-9A-F]{4,6}>)/);
  if (parts.length === 1) {
    made.textContent = text;
    return;
  }
  parts.forEach((part, index) => {
    if (index % 2 === 0) made.append(document.createTextNode(part));
    else {
      const unseen = document.createElement("span");
      unseen.className = "unseen";
      unseen.textContent = part.slice(1, -1);
      made.append(unseen);
    }
  });
}

// -- time: in the zone of the browser, with UTC a pointer's rest (or, in facts, a glance) away --------------------------------------

function rough(seconds) {
  if (seconds >= 86400) return `${Math.floor(seconds / 86400)} d`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h`;
  if (seconds >= 60) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds)} s`;
}

function relative(atMs, nowMs) {
  const seconds = (nowMs - atMs) / 1000;
  if (Math.abs(seconds) < 1) return "now";
  return seconds > 0 ? `${rough(seconds)} ago` : `in ${rough(-seconds)}`;
}

function utcWords(atMs) {
  return `${new Date(atMs).toISOString().replace("T", " ").replace("Z", "")} UTC`;
}

// ISO 8601 without a zone, as a clock on the viewer's wall shows it.
function wall(atMs, utc) {
  const at = new Date(atMs);
  return new Date(atMs - (utc ? 0 : at.getTimezoneOffset() * 60000)).toISOString().slice(0, 23).replace("T", " ");
}

function time(cell, nowMs, utc, both) {
  const made = element("span", "time");
  if (cell.at === null) {
    made.append(element("span", "faint", cell.none));
    return made;
  }
  const here = wall(cell.at, utc);
  const clock = cell.fine ? here.slice(11, 23) : here.slice(11, 19);
  made.title = utcWords(cell.at);
  const today = here.slice(0, 10) === wall(nowMs, utc).slice(0, 10);
  made.append(element("span", "clock", today ? clock : `${here.slice(0, 10)} ${clock}`));
  if (!cell.fine) {
    const since = element("span", "faint since", relative(cell.at, nowMs));
    since.dataset.at = String(cell.at);
    made.append(since);
  }
  if (both && !utc && new Date(cell.at).getTimezoneOffset() !== 0) made.append(element("span", "faint since", `${wall(cell.at, true).slice(today ? 11 : 0, 19)} UTC`));
  return made;
}

// -- the kinds of cell ---------------------------------------------------------------------------------------------------------------

function bars(cell) {
  const count = cell.values.length;
  const height = 34;
  const svg = shape("svg", { viewBox: `0 0 ${count * 10} ${height}`, preserveAspectRatio: "none", class: "bars", role: "img", "aria-label": cell.label });
  const rectangle = (x, y, h, className) => shape("rect", { x, y, width: 8, height: h, class: className });
  cell.values.forEach((value, index) => {
    const refused = cell.refused[index];
    const scale = (amount) => (amount === 0 || cell.maximum === 0 ? 0 : Math.max(1.5, (amount / cell.maximum) * (height - 2)));
    const allowedHeight = scale(value - refused);
    const refusedHeight = scale(refused);
    const group = shape("g", {});
    const title = shape("title", {});
    title.textContent = cell.titles[index];
    group.append(title, rectangle(index * 10 + 1, 0, height, "hover"), rectangle(index * 10 + 1, height - 1, 1, "floor"));
    if (allowedHeight) group.append(rectangle(index * 10 + 1, height - allowedHeight, allowedHeight, "allowed"));
    if (refusedHeight) group.append(rectangle(index * 10 + 1, height - allowedHeight - refusedHeight, refusedHeight, "refused"));
    svg.append(group);
  });
  return svg;
}

function mark(cell) {
  const made = element("span", `mark ${cell.tone}`);
  made.append(element("span", "dot"), element("span", "", cell.text));
  return made;
}

function drawn(cell, nowMs, utc, both) {
  switch (cell.kind) {
    case "time":
      return time(cell, nowMs, utc, both);
    case "bars":
      return bars(cell);
    case "mark":
      return mark(cell);
    case "lines": {
      const made = element("span", "lines");
      made.append(element("span", "first", cell.text), element("span", "second faint", cell.below));
      return made;
    }
    case "sql": {
      const made = element("span", cell.below ? "lines" : "");
      made.append(element("span", "sql", cell.text));
      if (cell.note) made.append(element("span", cell.below ? "second faint" : "faint aside", cell.note));
      return made;
    }
    case "paragraph": {
      const made = element("div", "paragraph");
      made.append(...cell.lines.map((line) => element("div", "", line)));
      return made;
    }
    default: {
      const made = element("span", `${cell.kind} ${cell.tone || ""}`, cell.text);
      if (cell.title) made.title = cell.title;
      return made;
    }
  }
}
