"use strict";
// Everything that comes from a bench or a model is put into the page as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const comparing = data.runs.length === 2;
  const byId = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Votes by key, as { choice, time }. `left` and `right` are as shown on the page.
  const storage = "kontextbench votes " + data.id;
  let votes = new Map();
  const load = () => {
    try {
      votes = new Map(Object.entries(JSON.parse(localStorage.getItem(storage)) || {}));
    } catch {
      byId("storage").hidden = false;
    }
  };
  const save = () => {
    try {
      localStorage.setItem(storage, JSON.stringify(Object.fromEntries(votes)));
    } catch {
      byId("storage").hidden = false;
    }
  };
  // The run shown on the left was drawn when the page was made, from a seed and the pair's key.
  const sides = (pair) => (pair.swapped ? [1, 0] : [0, 1]);

  const state = { shown: data.pairs.slice(), index: 0, revealed: false };
  const current = () => state.shown[state.index];

  const drawList = () => {
    const list = byId("list");
    list.replaceChildren(...state.shown.map((pair, index) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      button.append(make("span", "words", pair.instruction), make("span", "key", pair.key), make("span", "mark"));
      button.addEventListener("click", () => go(index));
      item.append(button);
      return item;
    }));
    state.shown.forEach((pair, index) => mark(index));
  };
  const mark = (index) => {
    const item = byId("list").children[index];
    if (!item) return;
    const vote = votes.get(state.shown[index].key);
    item.querySelector(".mark").textContent = !comparing || !vote ? "" : { left: "left", right: "right", tie: "neither" }[vote.choice];
  };

  const figure = (image, caption) => {
    const [source, width, height] = data.images[image];
    const box = make("figure", Math.max(width, height) <= 256 ? "small" : "");
    const img = make("img");
    img.src = source;
    img.width = width;
    img.height = height;
    img.alt = caption;
    box.append(img, make("figcaption", "", caption));
    return box;
  };
  const drawImages = (pair) => {
    const figures = pair.sources.map((image, index) => figure(image, index === 0 ? "Source" : "Reference " + (index + 1)));
    const vote = votes.get(pair.key);
    if (comparing) {
      sides(pair).forEach((run, side) => {
        const name = side === 0 ? "Left" : "Right";
        const box = figure(pair.results[run].image, state.revealed ? name + ": " + data.runs[run].name : name);
        box.dataset.side = name.toLowerCase();
        box.classList.toggle("chosen", Boolean(vote) && vote.choice === name.toLowerCase());
        figures.push(box);
      });
    } else {
      const box = figure(pair.results[0].image, "Result");
      box.dataset.side = "result";
      figures.push(box);
    }
    // The truth would decide the vote.
    if (pair.truth !== null && (!comparing || state.revealed)) figures.push(figure(pair.truth, "Truth"));
    byId("images").replaceChildren(...figures);
  };
  const table = (caption, head, rows) => {
    const box = make("div", "scroll");
    const element = make("table");
    element.append(make("caption", "", caption));
    const line = (cells, name) => {
      const row = make("tr");
      cells.forEach((text, index) => {
        const cell = make(index === 0 || name === "th" ? "th" : "td", "", text);
        if (cell.tagName === "TH") cell.scope = name === "th" ? "col" : "row";
        row.append(cell);
      });
      return row;
    };
    const top = make("thead");
    top.append(line(head, "th"));
    const body = make("tbody");
    body.append(...rows.map((cells) => line(cells, "td")));
    element.append(top, body);
    box.append(element);
    return box;
  };
  const drawMeasures = (pair) => {
    const visible = !comparing || state.revealed;
    byId("measures").hidden = !visible;
    if (!visible) return byId("measures").replaceChildren();
    const runs = comparing ? sides(pair) : [0];
    const rows = runs.map((run) => [data.runs[run].name, ...pair.results[run].measures]);
    byId("measures").replaceChildren(table("Measures of this pair", ["run", ...data.columns], rows));
  };

  // Only the list scrolls: `scrollIntoView` would also move everything around it.
  const follow = (button) => {
    const list = document.querySelector("nav");
    const [frame, box] = [list.getBoundingClientRect(), button.getBoundingClientRect()];
    if (box.top < frame.top) list.scrollTop -= frame.top - box.top;
    else if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom;
  };
  const draw = () => {
    const pair = current();
    const some = Boolean(pair);
    byId("empty").hidden = some;
    for (const id of ["instruction", "images"]) byId(id).hidden = !some;
    byId("voting").hidden = !some || !comparing;
    byId("position").textContent = some ? `${state.index + 1} of ${state.shown.length}` : "none";
    byId("previous").disabled = !some || state.index === 0;
    byId("next").disabled = !some || state.index === state.shown.length - 1;
    byId("place").textContent = some ? `${pair.category} · ${pair.key}` : "";
    if (!some) return byId("measures").replaceChildren();
    byId("instruction").textContent = pair.instruction;
    drawImages(pair);
    drawMeasures(pair);
    const buttons = byId("list").children;
    for (const item of byId("list").querySelectorAll("[aria-current]")) item.removeAttribute("aria-current");
    const button = buttons[state.index].firstChild;
    button.setAttribute("aria-current", "true");
    follow(button);
    if (!comparing) return;
    const vote = votes.get(pair.key);
    for (const choice of document.querySelectorAll("[data-choice]")) {
      choice.setAttribute("aria-pressed", String(Boolean(vote) && vote.choice === choice.dataset.choice));
      // Votes must be blind, so revealing the runs disables voting.
      choice.disabled = state.revealed;
    }
    byId("withdraw").disabled = !vote || state.revealed;
    byId("reveal").setAttribute("aria-pressed", String(state.revealed));
    const counted = data.pairs.filter((pair) => votes.has(pair.key)).length;
    byId("voted").textContent = `${counted} of ${data.pairs.length} voted`;
    byId("export").disabled = counted === 0;
    byId("clear").disabled = counted === 0;
  };

  const go = (index) => {
    state.index = Math.max(0, Math.min(index, state.shown.length - 1));
    draw();
  };
  const filter = () => {
    const key = current() && current().key;
    const category = byId("category").value;
    const words = byId("search").value.trim().toLowerCase();
    state.shown = data.pairs.filter((pair) =>
      (category === "" || pair.category === category) &&
      (words === "" || pair.instruction.toLowerCase().includes(words) || pair.key.toLowerCase().includes(words)));
    drawList();
    go(Math.max(0, state.shown.findIndex((pair) => pair.key === key)));
  };

  const vote = (choice) => {
    const pair = current();
    if (!comparing || !pair || state.revealed) return;
    votes.set(pair.key, { choice, time: new Date().toISOString() });
    save();
    mark(state.index);
    if (state.index + 1 < state.shown.length) go(state.index + 1);
    else draw();
  };
  const withdraw = () => {
    if (!comparing || !current() || state.revealed || !votes.delete(current().key)) return;
    save();
    mark(state.index);
    draw();
  };
  const nextWithoutVote = () => {
    const open = (pair) => !votes.has(pair.key);
    const later = state.shown.findIndex((pair, index) => index > state.index && open(pair));
    const index = later >= 0 ? later : state.shown.findIndex(open);
    if (comparing && index >= 0) go(index);
  };
  const reveal = () => {
    if (!comparing) return;
    state.revealed = !state.revealed;
    draw();
  };
  const csv = () => {
    // As kontext_bench::cell::csv: a spreadsheet must not take a text for a formula.
    const formula = /^(?:[=+\-@\t\r\n＝＋－＠]|'['=+\-@\t\r\n＝＋－＠])/;
    const guarded = (text) => (formula.test(text) ? "'" + text : text);
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = data.pairs.filter((pair) => votes.has(pair.key)).map((pair) => {
      const [left, right] = sides(pair).map((run) => data.runs[run].name);
      const { choice, time } = votes.get(pair.key);
      return [pair.key, pair.category, left, right, choice, time].map(guarded).map(quoted).join(",");
    });
    return ["key,category,left,right,choice,time", ...lines].join("\r\n") + "\r\n";
  };
  const exportVotes = () => {
    if (!comparing || votes.size === 0) return;
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "kontextbench-votes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const clear = () => {
    if (!confirm("Clear all votes on this page?")) return;
    votes.clear();
    save();
    state.shown.forEach((pair, index) => mark(index));
    draw();
  };

  const keys = {
    ArrowRight: () => go(state.index + 1),
    ArrowLeft: () => go(state.index - 1),
    j: () => go(state.index + 1),
    k: () => go(state.index - 1),
    1: () => vote("left"),
    a: () => vote("left"),
    2: () => vote("right"),
    b: () => vote("right"),
    0: () => vote("tie"),
    t: () => vote("tie"),
    x: withdraw,
    n: nextWithoutVote,
    r: reveal,
    e: exportVotes,
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    // Auto-repeat moves, but does not vote.
    if (!act || (event.repeat && !/^Arrow|^[jk]$/.test(event.key))) return;
    event.preventDefault();
    act();
  });
  byId("previous").addEventListener("click", () => go(state.index - 1));
  byId("next").addEventListener("click", () => go(state.index + 1));
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", () => vote(button.dataset.choice));
  }
  byId("withdraw").addEventListener("click", withdraw);
  byId("unvoted").addEventListener("click", nextWithoutVote);
  byId("reveal").addEventListener("click", reveal);
  byId("export").addEventListener("click", exportVotes);
  byId("clear").addEventListener("click", clear);
  // Votes from another window on this page, whose last ones may still be in progress when this one opens.
  window.addEventListener("storage", (event) => {
    if (event.key !== storage) return;
    load();
    state.shown.forEach((pair, index) => mark(index));
    draw();
  });
  byId("category").addEventListener("change", filter);
  byId("search").addEventListener("input", filter);

  const drawFrame = () => {
    document.body.classList.toggle("comparing", comparing);
    const options = [["", `All (${data.pairs.length})`], ...data.categories.map(([name, count]) => [name, `${name} (${count})`])];
    byId("category").replaceChildren(...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    byId("summary").textContent = comparing
      ? `${data.pairs.length} pairs, two runs, in an order that does not tell which is which`
      : `${data.pairs.length} pairs by ${data.runs[0].name}`;
    byId("tables").replaceChildren(...data.runs.map((run) => table(run.name, ["category", "n", ...data.columns], run.means)));
    byId("facts").replaceChildren(...data.runs.flatMap((run) => [
      make("dt", "run", run.name),
      ...run.facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]),
    ]));
    byId("note").textContent = data.note;
    byId("note").hidden = data.note === "";
  };
  load();
  drawFrame();
  drawList();
  go(0);
})();
