// A session moment by moment: a lane of all of them, a slider, and the one that is looked at. It plays by itself on a press.

const PLAY_MS = 900; // a moment: long enough to read a short statement

function replay(root, data, state, nowMs) {
  const moments = data.moments;
  if (state.playing) clearInterval(state.playing);
  state.playing = 0;
  if (moments.length === 0) {
    root.replaceChildren(element("p", "faint", data.empty));
    return;
  }
  const clamp = (place) => Math.min(moments.length - 1, Math.max(0, place));
  if (state.place === undefined) state.place = clamp(data.place);
  state.place = clamp(state.place);

  const box = element("section", "replay");
  box.setAttribute("aria-label", data.label);
  const lane = shape("svg", { viewBox: "0 0 1000 30", preserveAspectRatio: "none", class: "lane", "aria-hidden": "true" });
  lane.append(shape("rect", { x: 0, y: 14, width: 1000, height: 2, class: "ground" }));
  moments.forEach((moment, index) => {
    const x = Math.min(995, moment.share * 995);
    const drawnMoment = shape("rect", { x, y: 5, width: Math.max(3, moment.length * 995), height: 20, class: `moment ${moment.tone}` });
    drawnMoment.append(pointTitle(`${index + 1}. ${moment.kind}, ${moment.after} after opening`));
    drawnMoment.addEventListener("click", () => go(index));
    lane.append(drawnMoment);
  });
  const needle = shape("rect", { x: 0, y: 0, width: 2.5, height: 30, class: "needle" });
  lane.append(needle);

  const slider = element("input", "slider");
  slider.type = "range";
  slider.min = "1";
  slider.max = String(moments.length);
  slider.setAttribute("aria-label", "Moment of the session");
  const button = (label, text, act) => {
    const made = element("button", "action step", text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  };
  const previous = button("Moment before", "‹", () => go(state.place - 1));
  const next = button("Next moment", "›", () => go(state.place + 1));
  const play = button("Play", "Play", () => (state.playing ? stop() : begin()));
  const controls = element("div", "controls");
  const place = element("span", "faint place");
  place.setAttribute("aria-live", "polite");
  controls.append(previous, play, next, slider, place);
  const shown = element("div", "shown");
  box.append(lane, controls, shown);

  const draw = () => {
    const moment = moments[state.place];
    needle.setAttribute("x", String(Math.min(995, moment.share * 995)));
    slider.value = String(state.place + 1);
    slider.setAttribute("aria-valuetext", `${state.place + 1} of ${moments.length}: ${moment.kind}`);
    previous.disabled = state.place === 0;
    next.disabled = state.place === moments.length - 1;
    put(place, `${state.place + 1} of ${moments.length}`);
    const line = element("div", "line");
    line.append(mark(moment.mark), time(moment.time, nowMs, data.utc, false), element("span", "faint", `${moment.after} after opening`));
    const text = element("pre", "sql-whole", moment.text);
    text.tabIndex = 0;
    shown.replaceChildren(line, ...(moment.text ? [text] : []), facts(moment.facts, nowMs, data.utc));
  };
  const go = (target) => {
    state.place = clamp(target);
    const here = new URL(window.location.href);
    here.searchParams.set("step", String(data.first + state.place)); // so that what is looked at can be sent to a colleague
    window.history.replaceState(window.history.state, "", here);
    draw();
  };
  const stop = () => {
    clearInterval(state.playing);
    state.playing = 0;
    put(play, "Play");
    play.setAttribute("aria-label", "Play");
  };
  const begin = () => {
    if (state.place === moments.length - 1) go(0);
    put(play, "Pause");
    play.setAttribute("aria-label", "Pause");
    state.playing = setInterval(() => {
      if (state.place === moments.length - 1) stop();
      else go(state.place + 1);
    }, PLAY_MS);
  };
  slider.addEventListener("input", () => go(Number(slider.value) - 1));
  draw();
  root.replaceChildren(...titled(data), box);
}
