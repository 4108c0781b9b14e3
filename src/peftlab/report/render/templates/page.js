"use strict";
// Sorting, filtering and the runs of each row. The state stands behind the # of the address, so that a view can be
// shared: #q=peft%3Dlora&sort=2&dir=descending&open=1
(() => {
  const runs = JSON.parse(document.getElementById("runs").textContent);
  const state = new URLSearchParams(location.hash.slice(1));
  const box = document.getElementById("filter");
  const table = document.getElementById("results");
  const bodies = [...table.tBodies];
  const entries = bodies.map((body) => body.dataset.keys.split("\u001f"));
  const texts = bodies.map((body) => body.rows[0].textContent.toLowerCase());

  function remember(name, value) {
    if (value) state.set(name, value);
    else state.delete(name);
    history.replaceState(null, "", `#${state}`);
  }

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

  for (const of of document.querySelectorAll("table.sortable")) {
    of.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("button")?.closest("th");
      if (!head) return;
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      sort(of, head.cellIndex, direction);
      if (of === table) {
        remember("sort", String(head.cellIndex));
        remember("dir", direction);
      }
    });
  }

  function filter() {
    const words = (box.value.toLowerCase().match(/"[^"]*"|\S+/g) ?? []).map((word) => word.replaceAll('"', ""));
    let shown = 0;
    bodies.forEach((body, number) => {
      const has = (word) =>
        word.includes("=") && word.indexOf("=") > 0
          ? entries[number].some((entry) => entry === word || entry.startsWith(`${word} `))
          : texts[number].includes(word);
      const hit = words.every(has);
      body.hidden = !hit;
      shown += hit;
    });
    const unknown = words.find(
      (word) => word.indexOf("=") > 0 && !entries.some((of) => of.some((entry) => entry.startsWith(`${word.split("=")[0]}=`))),
    );
    document.getElementById("count").textContent = unknown
      ? `No row has the key “${unknown.split("=")[0]}”. Keys: ${table.dataset.names || "none differs"}.`
      : `${shown} of ${bodies.length} rows`;
    remember("q", box.value);
  }

  function link(parent, folder, file, text) {
    const anchor = document.createElement("a");
    anchor.href = file.startsWith("/") ? folder.replace(/[^/]*$/, "") + file.slice(1) : `${folder}/${file}`;
    anchor.textContent = text;
    parent.append(anchor, " ");
  }

  function fill(body) {
    const cell = body.rows[1].cells[0];
    if (cell.firstChild) return;
    const { list, about } = runs[Number(body.dataset.number)];
    const inner = document.createElement("table");
    inner.createTHead().innerHTML =
      '<tr><th class="text" scope="col">seed</th><th class="text" scope="col">value</th>' +
      '<th class="text" scope="col">run</th><th class="text" scope="col">files</th></tr>';
    const rows = inner.createTBody();
    for (const [seed, value, key, folder, has, log] of list) {
      const row = rows.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.className = "text";
      head.textContent = seed;
      row.append(head);
      for (let i = 0; i < 3; i++) row.insertCell().className = "text";
      link(row.cells[1], folder, "record.json", value);
      row.cells[2].textContent = key;
      if (has & 1) link(row.cells[3], folder, "config.yaml", "config");
      if (has & 2) link(row.cells[3], folder, "curves.png", "curves");
      if (log) link(row.cells[3], folder, log, "log");
    }
    if (about) {
      const line = document.createElement("p");
      line.className = "soft";
      line.textContent = about;
      cell.append(line);
    }
    cell.append(inner);
  }

  function toggle(body, open) {
    const button = body.querySelector("button");
    if (open) fill(body);
    button.setAttribute("aria-expanded", String(open));
    body.rows[1].hidden = !open;
  }

  table.addEventListener("click", (event) => {
    const button = event.target.closest("td.expand button");
    if (button) toggle(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true");
  });
  document.getElementById("all").addEventListener("click", (event) => {
    const open = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(open));
    bodies.filter((body) => !body.hidden).forEach((body) => toggle(body, open));
  });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme(name) {
    document.documentElement.dataset.theme = name;
    document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
  }
  theme(state.get("theme") ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => !state.has("theme") && theme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => {
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    remember("theme", document.documentElement.dataset.theme);
  });

  box.addEventListener("input", filter);
  document.querySelectorAll(".script").forEach((part) => { part.hidden = false; });
  box.value = state.get("q") ?? "";
  filter();
  if (state.has("sort")) sort(table, Number(state.get("sort")), state.get("dir") ?? "ascending");
  if (state.has("open")) bodies.filter((body) => !body.hidden).forEach((body) => toggle(body, true));
})();
