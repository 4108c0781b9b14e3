// The page itself: what is shown, chosen and opened. The state stands behind the # of the address, so that a view can
// be shared: #q=peft%3Dlora&sort=2&dir=descending&open=1&rows=0,2&only=1&seeds=0,1&by=peft.rank
const by = (id) => document.getElementById(id);
const state = new URLSearchParams(location.hash.slice(1));
const box = by("filter");
const table = by("results");
const grouped = by("grouped");
const bodies = [...table.tBodies];
const entries = bodies.map((body) => body.dataset.keys.split("\u001f"));
const texts = bodies.map((body) => body.rows[0].textContent.toLowerCase());
const seedBoxes = [...document.querySelectorAll("#seeds input")];
const first = 1 + (data.sections ? 1 : 0) + data.leads; // column of the table that holds the first figure
const asMade = new Map();
let seeds = null;
let groups = null;

const rowOf = (body) => data.rows[Number(body.dataset.number)];
const shownRow = (body) => kept(rowOf(body), seeds);
const chooser = (body) => body.querySelector("input");
const inPlace = () => [...table.tBodies];
const shownBodies = () => inPlace().filter((body) => !body.hidden);

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function remember(name, value) {
  if (value) state.set(name, value);
  else state.delete(name);
  history.replaceState(null, "", `#${state}`);
}

// -- sorting ---------------------------------------------------------------------------------------------------

function sort(of, column, direction) {
  const value = (body) => {
    const cell = body.rows[0].cells[column];
    if (!cell.classList.contains("number")) return cell.textContent.trim();
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  const sign = direction === "descending" ? -1 : 1;
  const keyed = [...of.tBodies].map((body) => [value(body), body]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // nothing to sort by: always last
    if (typeof a === "number") return sign * (a - b);
    return sign * a.localeCompare(b, "en", { numeric: true });
  });
  of.append(...keyed.map(([, body]) => body));
  for (const head of of.tHead.rows[0].cells) {
    if (head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", head.cellIndex === column ? direction : "none");
  }
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("table.sortable thead button")?.closest("th");
  if (!head) return;
  const of = head.closest("table");
  const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  sort(of, head.cellIndex, direction);
  if (of !== table) return;
  remember("sort", String(head.cellIndex));
  remember("dir", direction);
  showChosen();
});

// -- which rows and seeds ----------------------------------------------------------------------------------------

function filter() {
  const words = (box.value.toLowerCase().match(/"[^"]*"|\S+/g) ?? []).map((word) => word.replaceAll('"', ""));
  const only = by("only").getAttribute("aria-pressed") === "true";
  bodies.forEach((body, number) => {
    const has = (word) =>
      word.includes("=") && word.indexOf("=") > 0
        ? entries[number].some((entry) => entry === word || entry.startsWith(`${word} `))
        : texts[number].includes(word);
    body.hidden = !words.every(has) || (only && !chooser(body).checked);
  });
  const unknown = words.find(
    (word) => word.indexOf("=") > 0 && !entries.some((of) => of.some((entry) => entry.startsWith(`${word.split("=")[0]}=`))),
  );
  const chosen = bodies.filter((body) => chooser(body).checked);
  by("count").textContent = unknown
    ? `No row has the key “${unknown.split("=")[0]}”. Keys: ${table.dataset.names || "none differs"}.`
    : `${shownBodies().length} of ${bodies.length} rows${chosen.length ? `, ${chosen.length} chosen` : ""}`;
  remember("q", box.value);
  remember("rows", chosen.map((body) => body.dataset.number).join(","));
  remember("only", only ? "1" : "");
  group();
  showChosen();
}

function chooseSeeds() {
  const names = seedBoxes.filter((one) => one.checked).map((one) => one.value);
  seeds = names.length === seedBoxes.length ? null : new Set(names);
  by("seeds-title").textContent = seeds ? `Seeds: ${names.join(", ") || "none"}` : `Seeds: all ${seedBoxes.length}`;
  by("of-seeds").hidden = !seeds;
  const digits = digitsFor(bodies.map(shownRow));
  for (const body of bodies) {
    const places = [...body.rows[0].cells].slice(first);
    if (!asMade.has(body)) asMade.set(body, places.map((cell) => [cell.textContent, cell.dataset.v, cell.className]));
    const made = seeds ? cellsOf(shownRow(body), digits) : null;
    places.forEach((cell, i) => {
      const [text, value, look] = asMade.get(body)[i];
      cell.textContent = made ? made[i].text : text;
      cell.dataset.v = made ? made[i].value ?? "" : value ?? "";
      cell.className = made ? look.replace(/ (best|tied)$/, "") : look;
    });
    if (!body.rows[1].hidden) fill(body);
  }
  remember("seeds", seeds ? names.join(",") || "none" : "");
  group();
  showChosen();
}

// -- groups ------------------------------------------------------------------------------------------------------

function group() {
  const key = by("by").value;
  const known = data.keys.find(([name]) => name === key);
  table.hidden = Boolean(known);
  grouped.hidden = !known;
  by("of-groups").hidden = !known;
  by("notes").hidden = Boolean(known || seeds); // they speak of the marks
  remember("by", key);
  if (!known) {
    groups = null;
    return;
  }
  groups = groupsBy(key, shownBodies().map(shownRow));
  const digits = digitsFor(groups);
  const columns = [[known[1], false], ...data.columns.map((_, column) => [headOf(column), !isText(column)]), ["n", true]];
  const heads = columns.map(([title, number], i) => {
    const head = element("th", number ? "number" : i ? "text" : "text lead");
    head.scope = "col";
    head.setAttribute("aria-sort", "none");
    const button = element("button", "", title);
    button.type = "button";
    head.append(button);
    return head;
  });
  grouped.tHead.rows[0].replaceChildren(...heads);
  grouped.caption.textContent = `Results by ${known[1]}`;
  [...grouped.tBodies].forEach((body) => body.remove());
  groups.forEach((of, number) => {
    const body = grouped.createTBody();
    body.dataset.group = String(number);
    const line = body.insertRow();
    line.className = "row";
    const head = element("th", "text lead", of.label || NOTHING);
    head.scope = "row";
    line.append(head);
    cellsOf(of, digits).forEach(({ text, value }, i) => {
      const cell = element("td", columns[i + 1][1] ? "number" : "text", text);
      cell.dataset.v = value ?? "";
      line.append(cell);
    });
  });
  const mixed = groups.filter((of) => of.mixed).map((of) => of.label);
  by("of-groups").textContent =
    `Mean ± standard deviation (n − 1) over all runs of the rows that have this ${known[1]}; no test is made of them.` +
    (mixed.length ? ` Tested on different texts, so that their mean is one over test sets: ${mixed.join(", ")}.` : "");
}

// -- two rows or more --------------------------------------------------------------------------------------------

function written(column) {
  const [, form, digits] = data.columns[column];
  const scale = form === "percent" ? 100 : 1;
  if (tells(column)) return (value) => fixed(scale * value, true, digits ?? DIGITS[form]);
  return (value) => (value > 0 ? "+" : "") + plainNumber(value);
}

function differenceTable(names, rows) {
  const made = element("table", "plain-table");
  made.createCaption().textContent = `${names[0]} minus ${names[1]}`;
  const heads = made.createTHead().insertRow();
  for (const [i, title] of ["figure", ...names, "shared seeds", "difference", "95 % interval (t)", "p"].entries()) {
    const head = element("th", i ? "number" : "text", title);
    head.scope = "col";
    heads.append(head);
  }
  const digits = digitsFor(rows);
  data.columns.forEach((_, column) => {
    if (isText(column)) return;
    const test = difference(...rows, column);
    const text = written(column);
    const line = made.tBodies[0]?.insertRow() ?? made.createTBody().insertRow();
    const head = element("th", "text", headOf(column));
    head.scope = "row";
    line.append(head);
    const cells = [
      ...rows.map((row) => cellOf(row, column, digits[column]).text), String(test.n), test.mean === undefined ? NOTHING : text(test.mean),
      test.interval ? `[${test.interval.map(text).join(", ")}]` : test.why, test.p === undefined ? NOTHING : pText(test.p),
    ];
    line.append(...cells.map((cell) => element("td", "number", cell)));
  });
  return made;
}

function showChosen() {
  const chosen = inPlace().filter((body) => chooser(body).checked);
  const rows = chosen.map(shownRow);
  const names = rows.map((row) => row.label);
  by("chosen").replaceChildren();
  by("chosen-hint").textContent =
    chosen.length < 2 ? "Choose two rows with their boxes to see their difference; two to eight, to see their curves together."
      : chosen.length > 2 ? `${chosen.length} rows are chosen; a difference is that of two.`
        : "Paired over the seeds that both have: Student's t, two-sided, for this pair alone. Who looks at many pairs finds some " +
          "difference by chance; the comparison with a baseline (--baseline) is corrected for that.";
  if (chosen.length === 2) {
    const scroll = element("div", "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Difference of two rows");
    scroll.append(differenceTable(names, rows));
    by("chosen").append(scroll);
  }
  if (chosen.length > 1 && chosen.length <= 8) {
    const words = rows.map((row) => row.label.split(" "));
    const own = words.map((of) => of.filter((word) => !words.every((others) => others.includes(word))).join(" "));
    const lines = rows.map((row, i) => {
      const curves = row.runs.map((run) => run.curves).filter(Boolean);
      return [own[i] || row.label, curves.length ? data.quantities.map((_, i) => meanCurve(curves.map((of) => of[i]))) : null];
    });
    by("chosen").append(element("p", "soft", "Learning curves, means over seeds:"), charts(lines));
  }
}

// -- the runs and curves of a row --------------------------------------------------------------------------------

function link(parent, folder, file, text) {
  const anchor = element("a", "", text);
  anchor.href = file.startsWith("/") ? folder.replace(/[^/]*$/, "") + file.slice(1) : `${folder}/${file}`;
  parent.append(anchor, " ");
}

function fill(body) {
  const cell = body.rows[1].cells[0];
  const { runs, about, label } = shownRow(body);
  cell.replaceChildren();
  const inner = document.createElement("table");
  inner.createCaption().textContent = `Runs of ${label}`;
  inner.createTHead().innerHTML =
    '<tr><th class="text" scope="col">seed</th><th class="text" scope="col">value</th>' +
    '<th class="text" scope="col">run</th><th class="text" scope="col">files</th></tr>';
  const rows = inner.createTBody();
  for (const { seed, value, key, folder, has, log } of runs) {
    const row = rows.insertRow();
    const head = element("th", "text", seed);
    head.scope = "row";
    row.append(head);
    for (let i = 0; i < 3; i++) row.insertCell().className = "text";
    link(row.cells[1], folder, "record.json", value);
    row.cells[2].textContent = key;
    if (has & 1) link(row.cells[3], folder, "config.yaml", "config");
    if (has & 2) link(row.cells[3], folder, "curves.png", "curves");
    if (log) link(row.cells[3], folder, log, "log");
  }
  if (about) cell.append(element("p", "soft", about));
  const close = element("button", "plain close", "Close");
  close.type = "button";
  cell.append(inner, charts(runs.map((run) => [`seed ${run.seed}`, run.curves])), close);
}

function toggle(body, open) {
  if (open) fill(body);
  body.querySelector("button").setAttribute("aria-expanded", String(open));
  body.rows[1].hidden = !open;
}

function close(body) {
  toggle(body, false);
  body.querySelector("button").focus();
}

table.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const body = button?.closest("tbody");
  if (body && button.matches(".close")) close(body);
  else if (body) toggle(body, button.getAttribute("aria-expanded") !== "true");
});
table.addEventListener("keydown", (event) => {
  const body = event.target.closest("tbody[data-number]");
  if (event.key === "Escape" && body && !body.rows[1].hidden) close(body);
});
table.addEventListener("change", (event) => event.target.matches("input") && filter());
by("all").addEventListener("click", (event) => {
  const open = event.target.getAttribute("aria-pressed") !== "true";
  event.target.setAttribute("aria-pressed", String(open));
  bodies.filter((body) => !body.hidden).forEach((body) => toggle(body, open));
});

// -- copying -----------------------------------------------------------------------------------------------------

function shownTable() {
  const heads = data.heads.map(([title, number]) => ({ title, number }));
  const [leads, figures] = [heads.slice(0, data.leads), heads.slice(data.leads)];
  if (groups) {
    const [, short] = data.keys.find(([key]) => key === by("by").value);
    const digits = digitsFor(groups);
    const rows = [...grouped.tBodies].map((body) => {
      const of = groups[Number(body.dataset.group)];
      return Object.assign([{ text: of.label }, ...cellsOf(of, digits)], { row: of });
    });
    return { heads: [{ title: short, number: false }, ...figures], sections: [{ title: "", rows }], leads: 1 };
  }
  const sections = [];
  for (const body of shownBodies()) {
    const cells = [...body.rows[0].cells].slice(first - data.leads);
    const made = cells.map((cell) => ({
      text: cell.textContent, mark: ["best", "tied"].find((mark) => cell.classList.contains(mark)),
    }));
    const row = shownRow(body);
    if (sections.at(-1)?.title !== row.section) sections.push({ title: row.section, rows: [] });
    sections.at(-1).rows.push(Object.assign(made, { row }));
  }
  if (new Set(sections.map(({ title }) => title)).size === sections.length) return { heads, sections, leads: data.leads };
  const flat = sections.flatMap(({ title, rows }) => rows.map((cells) => Object.assign([{ text: title }, ...cells], { row: cells.row })));
  return { heads: [{ title: "section", number: false }, ...heads], sections: [{ title: "", rows: flat }], leads: data.leads + 1 };
}

// What the cells of the shown table are, and what stands below it; of the marks only where they are shown.
function wordsOf({ sections }) {
  const rows = sections.flatMap((section) => section.rows.map((cells) => cells.row));
  const fewer = shownBodies().length < bodies.length;
  const own = seeds || groups ? [seeds ? `Seeds ${[...seeds].join(", ")}.` : "", meansAlone(rows), data.with_head] : [data.notes];
  const marks = seeds || groups ? "" : " What is said of the best row and of tests is said of all rows.";
  if (fewer) own.push(`${shownBodies().length} of ${bodies.length} rows.${marks}`);
  return { caption: `${data.title} ${cellsInWords(rows)}`, notes: [own.filter(Boolean).join(" "), data.about] };
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const shown = shownTable();
    const text = { latex: asLatex, markdown: asMarkdown, csv: asCsv }[button.dataset.copy](shown, wordsOf(shown));
    const area = by("copied");
    area.textContent = area.value = text;
    area.hidden = false;
    const count = shown.sections.reduce((sum, { rows }) => sum + rows.length, 0);
    const what = `${count} ${count === 1 ? "row" : "rows"} as ${button.textContent}`;
    try {
      await navigator.clipboard.writeText(text);
      by("copy-count").textContent = `Copied ${what}.`;
    } catch {
      area.focus();
      area.select();
      by("copy-count").textContent = `${what}: selected below, to be copied with Ctrl+C.`;
    }
  });
}

// -- the whole ---------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  by("theme").textContent = name === "dark" ? "Light" : "Dark";
}
theme(state.get("theme") ?? (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => !state.has("theme") && theme(dark.matches ? "dark" : "light"));
by("theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  remember("theme", document.documentElement.dataset.theme);
});

function setAll(boxes, checked, then) {
  boxes.forEach((one) => { one.checked = checked; });
  then();
}
by("rows-all").addEventListener("click", () => setAll(shownBodies().map(chooser), true, filter));
by("rows-none").addEventListener("click", () => setAll(bodies.map(chooser), false, filter));
by("seeds-all").addEventListener("click", () => setAll(seedBoxes, true, chooseSeeds));
by("seeds-none").addEventListener("click", () => setAll(seedBoxes, false, chooseSeeds));
by("seeds").addEventListener("change", chooseSeeds);
by("by").addEventListener("change", group);
by("only").addEventListener("click", (event) => {
  event.target.setAttribute("aria-pressed", String(event.target.getAttribute("aria-pressed") !== "true"));
  filter();
});

box.addEventListener("input", filter);
document.querySelectorAll(".script").forEach((part) => { part.hidden = false; });
box.value = state.get("q") ?? "";
const given = (name) => new Set((state.get(name) ?? "").split(",").filter(Boolean));
const [rowsGiven, seedsGiven] = [given("rows"), given("seeds")];
bodies.forEach((body) => { chooser(body).checked = rowsGiven.has(body.dataset.number); });
seedBoxes.forEach((one) => { one.checked = !seedsGiven.size || seedsGiven.has(one.value); });
by("only").setAttribute("aria-pressed", String(state.has("only")));
by("by").value = data.keys.some(([key]) => key === state.get("by")) ? state.get("by") : "";
if (seedsGiven.size) chooseSeeds();
filter();
if (state.has("sort")) sort(table, Number(state.get("sort")), state.get("dir") ?? "ascending");
if (state.has("open")) shownBodies().forEach((body) => toggle(body, true));
