// Learning curves as drawings in the page: one for each quantity, a line a run or a row, its name at its end.
const SVG = document.getElementById("drawing").namespaceURI;
const MOST_LETTERS = 22; // of a name beside its line
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

function drawn(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.textContent = text;
  parent.append(made);
  return made;
}

function steps(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// Places for labels near `wanted`, at least `apart` from each other.
function apartFrom(wanted, apart, bottom) {
  const places = [...wanted];
  const order = places.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  order.forEach((i, n) => { if (n) places[i] = Math.max(places[i], places[order[n - 1]] + apart); });
  let limit = bottom;
  for (const i of order.reverse()) {
    places[i] = Math.min(places[i], limit);
    limit = places[i] - apart;
  }
  return places;
}

// `lines` are [name, epochs, values]; a value that is null leaves a gap.
function chart(title, lines) {
  const known = lines.filter(([, , values]) => values.some((value) => value !== null));
  if (!known.length) return null;
  const longest = known.length > 8 ? 0 : Math.min(MOST_LETTERS, Math.max(...known.map(([name]) => name.length)));
  const [width, height, left, right, top, bottom] = [480, 250, 56, 14 + 7.6 * longest, 26, 38];
  const xs = known.flatMap(([, epochs]) => epochs);
  const ys = known.flatMap(([, , values]) => values.filter((value) => value !== null));
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => left + (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5) * (width - left - right);
  const y = (value) => height - bottom - (y1 > y0 ? (value - y0) / (y1 - y0) : 0.5) * (height - top - bottom);
  const ends = known.map(([name, , values]) => `${name} ${general(values.filter((value) => value !== null).at(-1))}`);
  const said = `${title} over ${x1} epochs; at the end: ${ends.slice(0, 12).join(", ")}`;
  const svg = drawn(document.createElement("div"), "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said, class: "chart" });
  drawn(svg, "text", { x: left, y: 14, class: "title" }, title);
  for (const value of steps(y0, y1, 4)) {
    drawn(svg, "line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" });
    drawn(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, plainNumber(value));
  }
  for (const value of steps(x0, x1, 5)) drawn(svg, "text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, general(value));
  drawn(svg, "text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "epoch");
  const lasts = known.map(([, , values]) => y(values.filter((value) => value !== null).at(-1)) + 4);
  const places = known.length > 8 ? [] : apartFrom(lasts, 14, height - bottom + 4);
  known.forEach(([name, epochs, values], number) => {
    let pen = "M";
    let path = "";
    values.forEach((value, i) => {
      if (value !== null) path += `${pen}${x(epochs[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L";
    });
    const look = { class: `line line-${number % 8}`, "stroke-dasharray": DASHES[Math.floor(number / 2) % 4] };
    drawn(svg, "path", { d: path, ...look });
    if (epochs.length === 1) drawn(svg, "circle", { cx: x(epochs[0]), cy: y(values[0]), r: 3, class: look.class });
    const short = name.length > MOST_LETTERS ? `${name.slice(0, MOST_LETTERS - 1)}…` : name;
    if (places.length) drawn(svg, "text", { x: width - right + 6, y: places[number] }, short);
  });
  return svg;
}

// Of all curves the mean, where all have a value.
function meanCurve(curves) {
  const known = curves.filter(([epochs]) => epochs.length).map(([epochs, values]) => new Map(epochs.map((at, i) => [at, values[i]])));
  if (!known.length) return [[], []];
  const places = [...known[0].keys()].filter((at) => known.every((one) => Number.isFinite(one.get(at) ?? NaN)));
  return [places, places.map((at) => total(known.map((one) => one.get(at))) / known.length)];
}

// Drawings of `lines`, [name, curves of each quantity], or a sentence on why there are none.
function charts(lines) {
  const box = document.createElement("div");
  box.className = "charts";
  const known = lines.filter(([, curves]) => curves);
  data.quantities.forEach((title, i) => {
    const made = chart(title, known.map(([name, curves]) => [name, ...curves[i]]));
    if (made) box.append(made);
  });
  if (box.firstChild) return box;
  const line = document.createElement("p");
  line.className = "soft";
  line.textContent = known.length ? "The records have no learning curve."
    : lines.length ? "The page has no room for the curves of so many runs; report the rows that you want with --where."
      : "No run has a result.";
  return line;
}
