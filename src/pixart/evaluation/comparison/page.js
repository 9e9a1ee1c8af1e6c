"use strict";
(() => {
  const source = document.documentElement.outerHTML; // before anything is changed: what "Save this page" writes
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const imageOf = (place, model) => get(`p${place}-${model}`);
  const place = new Map(data.places.map((cell, index) => [`${cell.row} ${cell.seed}`, index]));
  const number = new Map(data.models.map((model, index) => [model.folder, index]));

  // Tabs. The address names the tab, so that a reload stays on it.
  const tabs = [...document.querySelectorAll("nav button")];
  let shown = "images";
  function show(name) {
    shown = tabs.some((tab) => tab.dataset.tab === name) ? name : "images";
    for (const tab of tabs) {
      const chosen = tab.dataset.tab === shown;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      get(tab.dataset.tab).hidden = !chosen;
    }
    if (shown === "vote") ask();
    if (shown === "slider") slide();
  }
  for (const tab of tabs) {
    tab.addEventListener("click", () => { history.replaceState(null, "", `#/${tab.dataset.tab}`); show(tab.dataset.tab); });
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.stopPropagation();
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  }

  // The table: one category at a time, images larger or smaller.
  const rows = [...document.querySelectorAll(".row[data-place]")];
  get("category").addEventListener("change", (event) => {
    for (const row of rows) row.hidden = event.target.value !== "" && row.dataset.category !== event.target.value;
  });
  get("side").addEventListener("input", (event) => {
    document.querySelector(".table").style.setProperty("--side", `${event.target.value}px`);
  });

  // The slider.
  const left = get("left"), right = get("right"), which = get("which"), at = get("at"), stage = get("stage");
  function slide() {
    const cell = data.places[which.value];
    const pair = [left.value, right.value].map((model) => imageOf(which.value, model));
    get("slider-words").textContent = cell.text;
    [["under", 0, left], ["over", 1, right]].forEach(([id, index, select]) => {
      get(id).hidden = !pair[index];
      if (pair[index]) get(id).src = pair[index].src;
      const name = get(`${id}-name`);
      name.textContent = data.models[select.value].name + (pair[index] ? "" : " (no image)");
      name.style.setProperty("--own", `var(--m${select.value % 8})`);
    });
    const sizes = pair.map((image) => image && `${image.dataset.width} × ${image.dataset.height}`);
    const differ = sizes[0] && sizes[1] && sizes[0] !== sizes[1];
    get("sizes").textContent = differ ? `The sizes differ, ${sizes.join(" and ")}; both are scaled to fit.` : "";
  }
  at.addEventListener("input", () => stage.style.setProperty("--at", `${at.value}%`));
  for (const select of [left, right, which]) select.addEventListener("change", slide);
  function turn(step) {
    which.value = String((Number(which.value) + step + data.places.length) % data.places.length);
    slide();
  }
  get("before").addEventListener("click", () => turn(-1));
  get("after").addEventListener("click", () => turn(1));
  for (const row of rows) {
    for (const image of row.querySelectorAll("img")) {
      image.addEventListener("click", () => {
        const model = Number(image.closest("figure").dataset.model);
        which.value = row.dataset.place;
        if (Number(left.value) === model) left.value = right.value;
        right.value = String(model);
        if (left.value === right.value) left.value = String((model + 1) % data.models.length);
        tabs.find((tab) => tab.dataset.tab === "slider").click();
      });
    }
  }

  // Votes: {voter, row, seed, left, right, choice}; a voter has one on each pair of images. They are in this file
  // (see "Save this page") and in the browser's own memory.
  const key = `pixart-compare-${data.id}`;
  const identity = (vote) => [vote.voter, vote.row, vote.seed, ...[vote.left, vote.right].sort()].join("|");
  const votes = new Map();
  let remembers = true;
  const add = (list) => list.forEach((vote) => votes.set(identity(vote), vote));
  const valid = (vote) => vote && typeof vote.voter === "string" && place.has(`${vote.row} ${vote.seed}`) &&
    number.has(vote.left) && number.has(vote.right) && vote.left !== vote.right &&
    ["left", "right", "tie"].includes(vote.choice);
  const inside = JSON.parse(get("votes").textContent);
  let voter = String(Math.random()).slice(2, 12);
  add(inside.filter(valid));
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "{}");
    voter = kept.voter || voter;
    if (kept.votes) { // what is kept here is later than what the file came with
      for (const vote of inside) if (vote.voter === voter) votes.delete(identity(vote));
      add(kept.votes.filter(valid));
    }
  } catch { remembers = false; }
  function keep() {
    try { localStorage.setItem(key, JSON.stringify({ voter, votes: [...votes.values()] })); } catch { remembers = false; }
    get("forgets").hidden = remembers;
  }

  // FNV-1a: the order of the pairs and the sides look random, and are the same for the same voter after a reload.
  function mixed(text) {
    let hash = 2166136261;
    for (const letter of text) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
    hash ^= hash >>> 16; hash = Math.imul(hash, 2246822507); hash ^= hash >>> 13;
    return hash >>> 0;
  }
  const pairs = [];
  let equal = 0;
  data.places.forEach((cell, index) => {
    for (let a = 0; a < data.models.length; a++) {
      for (let b = a + 1; b < data.models.length; b++) {
        const [one, other] = [data.images[index][a], data.images[index][b]];
        if (one && other && one === other) equal++;
        else if (one && other) {
          const order = mixed(`${voter} ${index} ${a} ${b}`);
          const sides = order & 1 ? [a, b] : [b, a];
          pairs.push({ index, order, row: cell.row, seed: cell.seed, sides, models: sides.map((m) => data.models[m].folder) });
        }
      }
    }
  });
  pairs.sort((a, b) => a.order - b.order || a.index - b.index);
  const asVote = (pair, choice) =>
    ({ voter, row: pair.row, seed: pair.seed, left: pair.models[0], right: pair.models[1], choice });
  const open = () => pairs.filter((pair) => !skipped.has(pair) && !votes.has(identity(asVote(pair, ""))));
  const skipped = new Set();
  const done = []; // this visit's votes and skips, for undoing
  let now = null;

  function ask() {
    const waiting = open();
    const mine = pairs.filter((pair) => votes.has(identity(asVote(pair, "")))).length;
    now = waiting[0] || null;
    get("ballot").hidden = !now;
    get("skip").hidden = !now;
    get("undo").hidden = !done.length;
    get("counted").max = Math.max(1, pairs.length);
    get("counted").value = mine;
    const more = skipped.size ? `, ${skipped.size} skipped` : "";
    get("state").textContent = `${mine} of ${pairs.length} pairs voted on${more}.` +
      (now || !pairs.length ? "" : " That was all; thank you.") +
      (equal ? ` ${equal} pairs have identical images and are left out.` : "");
    if (now) {
      get("vote-words").textContent = data.places[now.index].text;
      ["first", "second"].forEach((id, side) => { get(id).src = imageOf(now.index, now.sides[side]).src; });
    }
    tally();
  }
  function choose(choice) {
    if (!now) return;
    if (choice === "skip") { skipped.add(now); done.push({ skipped: now }); }
    else { const vote = asVote(now, choice); votes.set(identity(vote), vote); done.push({ vote }); keep(); }
    ask();
  }
  function undo() {
    const last = done.pop();
    if (!last) return;
    if (last.skipped) skipped.delete(last.skipped); else { votes.delete(identity(last.vote)); keep(); }
    ask();
  }
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", () => { choose(button.dataset.choice); button.blur(); });
  }
  get("undo").addEventListener("click", undo);

  // Win rates. Ties are left out; the interval is Wilson's, for 95%.
  function wilson(wins, count) {
    const z = 1.959963984540054, rate = wins / count, size = z * z / count;
    const middle = (rate + size / 2) / (1 + size);
    const half = z * Math.sqrt(rate * (1 - rate) / count + size / (4 * count)) / (1 + size);
    return [rate, middle - half, middle + half];
  }
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 1 ? 1 : 0)}%`;
  const rateText = (wins, count) => {
    if (!count) return "no votes yet";
    const [rate, low, high] = wilson(wins, count);
    return `${percent(rate)} (${percent(Math.max(0, low))} to ${percent(Math.min(1, high))}), ${wins} of ${count}`;
  };
  function element(tag, content, name) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...[content].flat());
    return made;
  }
  function tally() {
    const size = data.models.length;
    const won = Array.from({ length: size }, () => Array(size).fill(0));
    let ties = 0;
    const voters = new Set();
    for (const vote of votes.values()) {
      voters.add(vote.voter);
      const [a, b] = [number.get(vote.left), number.get(vote.right)];
      if (vote.choice === "tie") ties++;
      else if (vote.choice === "left") won[a][b]++;
      else won[b][a]++;
    }
    const sum = (list) => list.reduce((total, value) => total + value, 0);
    const rates = get("rates");
    rates.replaceChildren();
    const order = data.models.map((_, m) => [m, sum(won[m]), sum(won[m]) + sum(won.map((line) => line[m]))]);
    order.sort((a, b) => b[1] / (b[2] || 1) - a[1] / (a[2] || 1));
    for (const [model, wins, count] of order) {
      const name = element("span", data.models[model].name, "chip");
      const track = element("div", [], "track");
      for (const part of [name, track]) part.style.setProperty("--own", `var(--m${model % 8})`);
      if (count) {
        const [rate, low, high] = wilson(wins, count);
        const range = element("i", []), dot = element("b", []);
        range.style.left = `${100 * low}%`;
        range.style.width = `${100 * (high - low)}%`;
        dot.style.left = `${100 * rate}%`;
        track.append(range, dot);
      }
      rates.append(element("div", [name, track, element("span", rateText(wins, count), "small")]));
    }
    const body = get("pairs");
    body.replaceChildren();
    for (let a = 0; a < size; a++) {
      for (let b = a + 1; b < size; b++) {
        const line = element("tr", [element("td", `${data.models[a].name} against ${data.models[b].name}`)]);
        line.append(element("td", rateText(won[a][b], won[a][b] + won[b][a])));
        body.append(line);
      }
    }
    get("ties").textContent = `${votes.size} votes of ${voters.size} ${voters.size === 1 ? "person" : "people"}, ` +
      `${ties} of them ties, which the rates leave out. Intervals are Wilson's, for 95%.`;
  }

  // Votes out and in.
  function download(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  get("export").addEventListener("click", () => {
    const file = { format: 1, comparison: data.id, votes: [...votes.values()] };
    download(`votes-${data.id}.json`, JSON.stringify(file, null, 1), "application/json");
  });
  get("save").addEventListener("click", () => {
    const now = JSON.stringify([...votes.values()]).replaceAll("<", "\\u003c");
    const begin = '<script type="application/json" id="votes">', end = "</" + "script>";
    const from = source.indexOf(begin) + begin.length;
    const page = source.slice(0, from) + now + source.slice(source.indexOf(end, from));
    download(`comparison-${data.id}.html`, `<!doctype html>\n${page}\n`, "text/html");
  });
  get("import").addEventListener("change", async (event) => {
    const status = get("imported");
    try {
      const file = JSON.parse(await event.target.files[0].text());
      if (file.comparison !== data.id) throw new Error("these votes are of another comparison");
      const good = file.votes.filter(valid), before = votes.size;
      add(good);
      keep();
      const bad = file.votes.length - good.length;
      status.textContent = `${votes.size - before} new votes were read` + (bad ? `, ${bad} are no votes of this page.` : ".");
    } catch (error) {
      status.textContent = `That file cannot be used: ${error.message}.`;
    }
    event.target.value = "";
    ask();
  });
  get("clear").addEventListener("click", () => {
    if (!confirm("Remove all votes that this page knows, others' too? Export them first to keep them.")) return;
    votes.clear();
    skipped.clear();
    done.length = 0;
    keep();
    ask();
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, summary")) return;
    const acts = shown === "vote"
      ? { ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("tie"),
          s: () => choose("skip"), u: undo, Backspace: undo }
      : shown === "slider" ? { ArrowUp: () => turn(-1), ArrowDown: () => turn(1) } : {};
    const act = acts[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  at.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) { event.preventDefault(); turn(step); }
  });

  document.body.classList.add("alive");
  document.querySelector("nav").hidden = false;
  keep();
  // With a slash, so that the browser does not scroll to the part of that name.
  addEventListener("hashchange", () => show(location.hash.slice(2)));
  show(location.hash.slice(2));
})();
