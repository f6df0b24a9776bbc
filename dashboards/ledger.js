// Draws what ledger.py sends. Text from events is hostile: it reaches the page through textContent alone, never as markup, and
// no element made here can load anything (no img, no link, no style from data).

const states = new WeakMap(); // by mount point: what is open, which rows were seen, the clock
const SVG = "http://www.w3.org/2000/svg";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) put(made, text);
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

// -- cells -----------------------------------------------------------------------------------------------------------------------

function time(cell, nowMs) {
  const made = element("span", "time");
  if (cell.at === null) {
    made.append(element("span", "faint", cell.none));
    return made;
  }
  const iso = new Date(cell.at).toISOString();
  const today = new Date(nowMs).toISOString().slice(0, 10);
  const clock = iso.slice(11, cell.fine ? 23 : 19);
  made.title = `${iso.replace("T", " ").replace("Z", "")} UTC`;
  made.append(element("span", "clock", iso.slice(0, 10) === today ? clock : `${iso.slice(0, 10)} ${clock.slice(0, 8)}`));
  if (!cell.fine) {
    const since = element("span", "faint since", relative(cell.at, nowMs));
    since.dataset.at = String(cell.at);
    made.append(since);
  }
  return made;
}

function bars(cell) {
  const count = cell.values.length;
  const height = 34;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${count * 10} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "bars");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", cell.label);
  const rectangle = (x, y, h, className) => {
    const made = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries({ x, y, width: 8, height: h, class: className })) made.setAttribute(name, String(value));
    return made;
  };
  cell.values.forEach((value, index) => {
    const refused = cell.refused[index];
    const scale = (amount) => (amount === 0 || cell.maximum === 0 ? 0 : Math.max(1.5, (amount / cell.maximum) * (height - 2)));
    const allowedHeight = scale(value - refused);
    const refusedHeight = scale(refused);
    const group = document.createElementNS(SVG, "g");
    const title = document.createElementNS(SVG, "title");
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

function drawn(cell, nowMs) {
  switch (cell.kind) {
    case "time":
      return time(cell, nowMs);
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

// -- parts -----------------------------------------------------------------------------------------------------------------------

function titled(data) {
  return data.title ? [element("h3", "title", data.title)] : [];
}

function facts(pairs, nowMs) {
  const list = element("dl", "facts");
  for (const pair of pairs) {
    const value = element("dd", "");
    value.append(drawn(pair.cell, nowMs));
    list.append(element("dt", "", pair.label), value);
  }
  return list;
}

function detail(row, columns, nowMs, act) {
  const line = element("tr", "detail");
  const place = element("td", "");
  place.colSpan = columns;
  if (row.detail.text) place.append(element("pre", "sql-whole", row.detail.text));
  if (row.detail.note) place.append(element("p", "faint note", row.detail.note));
  place.append(facts(row.detail.facts, nowMs));
  if (row.detail.actions.length) {
    const bar = element("div", "actions");
    for (const action of row.detail.actions) {
      const button = element("button", "action", action.label);
      button.type = "button";
      button.addEventListener("click", () => act({ name: action.name, id: row.id }));
      bar.append(button);
    }
    place.append(bar);
  }
  line.append(place);
  return line;
}

function rowDrawn(row, data, state, nowMs, act) {
  const line = element("tr", `row ${row.tone} ${row.selected ? "selected" : ""}`);
  row.cells.forEach((cell, index) => {
    const place = element("td", data.columns[index].align);
    place.append(drawn(cell, nowMs));
    line.append(place);
  });
  const made = [line];
  if (row.detail || data.selectable) {
    line.tabIndex = 0;
    line.setAttribute("role", "button");
    line.classList.add("openable");
    const press = () => {
      if (String(window.getSelection()).length > 0) return; // somebody is copying text
      if (data.selectable) act({ name: "select", id: row.id });
      else {
        if (!state.opened.delete(row.id)) state.opened.add(row.id);
        const open = state.opened.has(row.id);
        line.classList.toggle("open", open);
        line.setAttribute("aria-expanded", String(open));
        made[1].hidden = !open;
      }
    };
    line.addEventListener("click", press);
    line.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        press();
      }
    });
  }
  if (row.detail) {
    const below = detail(row, data.columns.length, nowMs, act);
    const open = state.opened.has(row.id);
    below.hidden = !open;
    line.classList.toggle("open", open);
    line.setAttribute("aria-expanded", String(open));
    made.push(below);
  }
  return made;
}

function table(root, data, state, nowMs, act) {
  const shape = JSON.stringify([data.title, data.columns, data.height, data.selectable]);
  let body = root.querySelector("tbody");
  if (state.shape !== shape || !body) {
    state.shape = shape;
    state.rows = new Map();
    const frame = element("div", "frame");
    if (data.height) frame.style.maxHeight = `${Number(data.height)}px`;
    const whole = element("table", "");
    const widths = element("colgroup", "");
    const head = element("thead", "");
    const names = element("tr", "");
    for (const column of data.columns) {
      const width = element("col", "");
      if (column.width) width.style.width = `${Number(column.width)}px`;
      widths.append(width);
      const name = element("th", column.align, column.label);
      name.scope = "col";
      if (column.title) name.title = column.title;
      names.append(name);
    }
    head.append(names);
    body = element("tbody", "");
    whole.style.minWidth = `${data.columns.reduce((sum, column) => sum + (Number(column.width) || 110), 0)}px`;
    whole.append(widths, head, body);
    frame.append(whole);
    root.replaceChildren(...titled(data), frame);
  }
  const before = state.rows;
  const drawnRows = new Map();
  const order = [];
  for (const row of data.rows) {
    const signature = JSON.stringify(row);
    const known = before.get(row.id);
    const entry = known && known.signature === signature ? known : { signature, lines: rowDrawn(row, data, state, nowMs, act) };
    if (!known && state.drew && data.flash) entry.lines[0].classList.add("fresh");
    drawnRows.set(row.id, entry);
    order.push(...entry.lines);
  }
  if (order.length === 0) {
    const line = element("tr", "empty");
    const place = element("td", "");
    place.colSpan = data.columns.length;
    place.append(element("p", "", data.empty));
    line.append(place);
    order.push(line);
  }
  // Move only what moved: an open row keeps its scroll position and its selected text while the page refreshes.
  order.forEach((line, index) => {
    if (body.children[index] !== line) body.insertBefore(line, body.children[index] || null);
  });
  while (body.children.length > order.length) body.lastElementChild.remove();
  state.rows = drawnRows;
  state.drew = true;
}

function strip(root, data) {
  const made = element("div", "strip");
  for (const item of data.items) {
    const figure = element("div", `figure ${item.tone}`);
    const value = element("div", "value");
    value.append(element("span", "", item.value), element("span", "unit", item.unit));
    figure.append(element("div", "label", item.label), value, element("div", "faint hint", item.hint));
    made.append(figure);
  }
  root.replaceChildren(made);
}

function banners(root, data, nowMs) {
  root.replaceChildren(
    ...data.items.map((item) => {
      const made = element("div", `banner ${item.tone}`);
      made.setAttribute("role", item.tone === "bad" ? "alert" : "status");
      made.append(element("strong", "", item.title), element("span", "", item.text));
      return made;
    }),
  );
}

function heading(root, data, nowMs) {
  const made = element("div", "heading");
  const line = element("div", "line");
  line.append(element("h2", "", data.title));
  if (data.mark) line.append(mark(data.mark));
  made.append(line);
  if (data.below) made.append(element("p", "faint", data.below));
  root.replaceChildren(made);
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  let state = states.get(parentElement);
  if (!state) {
    state = { opened: new Set(), rows: new Map(), drew: false, root: element("div", "ledger") };
    parentElement.append(state.root);
    states.set(parentElement, state);
  }
  const root = state.root;
  const received = performance.now();
  const now = () => data.now + (performance.now() - received); // the server's clock, carried on: a browser's may be wrong
  const act = (action) => setTriggerValue("action", action);
  if (data.part === "table") table(root, data, state, data.now, act);
  else if (data.part === "strip") strip(root, data);
  else if (data.part === "banners") banners(root, data, data.now);
  else if (data.part === "heading") heading(root, data, data.now);
  else if (data.part === "facts") {
    const list = facts(data.facts, data.now);
    if (data.wide) list.classList.add("wide");
    root.replaceChildren(...titled(data), list);
  }
  const tick = () => {
    for (const since of root.querySelectorAll(".since")) since.textContent = relative(Number(since.dataset.at), now());
  };
  tick();
  const timer = setInterval(tick, 1000);
  return () => clearInterval(timer);
}
