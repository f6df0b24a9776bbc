// Tables, figures, banners and facts, of the cells in cells.js. Which part is drawn, `data.part` says.

const states = new WeakMap(); // by mount point: what is open, which rows were seen

function titled(data) {
  return data.title ? [element("h2", "title", data.title)] : [];
}

function facts(pairs, nowMs, utc) {
  const list = element("dl", "facts");
  for (const pair of pairs) {
    const value = element("dd", "");
    value.append(drawn(pair.cell, nowMs, utc, true));
    list.append(element("dt", "", pair.label), value);
  }
  return list;
}

function buttons(actions, id, act) {
  const bar = element("div", "actions");
  for (const action of actions) {
    const button = element("button", "action", action.label);
    button.type = "button";
    button.addEventListener("click", () => act({ name: action.name, id }));
    bar.append(button);
  }
  return bar;
}

function detail(row, data, nowMs, act) {
  const line = element("tr", "detail");
  const place = element("td", "");
  place.colSpan = data.columns.length;
  if (row.detail.text) {
    const text = element("pre", "sql-whole", row.detail.text);
    text.tabIndex = 0; // it may scroll, and a keyboard must reach that
    place.append(text);
  }
  if (row.detail.note) place.append(element("p", "faint note", row.detail.note));
  place.append(facts(row.detail.facts, nowMs, data.utc));
  if (row.detail.actions.length) place.append(buttons(row.detail.actions, row.id, act));
  line.append(place);
  return line;
}

function rowDrawn(row, data, state, nowMs, act) {
  const line = element("tr", `row ${row.tone} ${row.selected ? "selected" : ""}`);
  row.cells.forEach((cell, index) => {
    const column = data.columns[index];
    const place = element("td", `${column.align} ${column.width && column.width < 150 ? "" : "broad"}`);
    if (index && column.width) place.dataset.label = column.label; // beside it where rows are cards; what is long explains itself
    place.append(drawn(cell, nowMs, data.utc, false));
    line.append(place);
  });
  const made = [line];
  if (row.detail || data.selectable) {
    // A row stays a row for a screen reader; what a keyboard reaches is the arrow in it.
    const arrow = element("button", `arrow ${data.selectable ? "leads" : ""}`);
    arrow.type = "button";
    arrow.setAttribute("aria-label", `${data.selectable ? "Open" : "More of"} ${line.cells[0].textContent.slice(0, 80) || "this row"}`);
    line.cells[0].classList.add("armed");
    line.cells[0].prepend(arrow);
    line.classList.add("openable");
    const show = () => {
      const open = state.opened.has(row.id);
      line.classList.toggle("open", open);
      arrow.setAttribute("aria-expanded", String(open));
      if (open && made.length === 1) {
        made.push(detail(row, data, nowMs, act)); // drawn when it is first looked at: of 200 rows most never are
        line.after(made[1]);
      }
      if (made.length > 1) made[1].hidden = !open;
    };
    line.addEventListener("click", (event) => {
      if (event.target !== arrow && String(window.getSelection()).length > 0) return; // somebody is copying text
      if (data.selectable) act({ name: "select", id: row.id });
      else {
        if (!state.opened.delete(row.id)) state.opened.add(row.id);
        show();
      }
    });
    if (row.detail) show();
  }
  return made;
}

function table(root, data, state, nowMs, act) {
  const form = JSON.stringify([data.title, data.columns, data.height, data.selectable, data.utc]);
  let body = root.querySelector("tbody");
  if (state.form !== form || !body) {
    state.form = form;
    state.rows = new Map();
    const least = data.columns.reduce((sum, column) => sum + (Number(column.width) || 110), 0);
    const frame = element("div", least > 330 ? "frame broad" : "frame"); // a broad one becomes cards where there is no room for it
    frame.tabIndex = 0; // it may scroll
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", data.title || data.name);
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
    whole.style.setProperty("--least", `${least}px`);
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
    figure.title = item.hint;
    made.append(figure);
  }
  root.replaceChildren(made);
}

function banners(root, data) {
  root.replaceChildren(
    ...data.items.map((item) => {
      const made = element("div", `banner ${item.tone}`);
      made.setAttribute("role", item.tone === "bad" ? "alert" : "status");
      made.append(element("strong", "", item.title), element("span", "", item.text));
      return made;
    }),
  );
}

function heading(root, data) {
  const made = element("div", "heading");
  const line = element("div", "line");
  line.append(element("h1", "", data.title));
  if (data.mark) line.append(mark(data.mark));
  made.append(line);
  if (data.below) made.append(element("p", "faint", data.below));
  root.replaceChildren(made);
}

const parts = {
  table,
  strip,
  banners,
  heading,
  facts: (root, data) => {
    const list = facts(data.facts, data.now, data.utc);
    if (data.wide) list.classList.add("wide");
    root.replaceChildren(...titled(data), list);
  },
  chart,
  hours,
  ending,
  replay,
};

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
  parts[data.part](root, data, state, data.now, act);
  const tick = () => {
    for (const since of root.querySelectorAll(".since[data-at]")) since.textContent = relative(Number(since.dataset.at), now());
  };
  tick();
  const timer = setInterval(tick, 1000);
  return () => {
    clearInterval(timer);
    clearInterval(state.playing);
  };
}
