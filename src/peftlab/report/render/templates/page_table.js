// Rows of the table, of the seeds that are chosen, and rows put together by a key.
const data = JSON.parse(document.getElementById("data").textContent);
const NOTHING = "–";
const asNumber = (value) => (typeof value === "string" ? ({ inf: Infinity, "-inf": -Infinity }[value] ?? NaN) : value);
const headOf = (column) => data.heads[data.leads + column][0];
const isText = (column) => data.columns[column][1] === "text";
const tells = (column) => TELLING.includes(data.columns[column][1]);
const deviates = ([, form, , deviation]) => deviation && !WITHOUT_DEVIATION.includes(form);

for (const row of data.rows) {
  row.runs = row.runs.map(([seed, value, key, folder, has, log, values, texts, curves]) => ({
    seed, value, key, folder, has, log, texts,
    curves: curves && curves.map(([epochs, figures]) => [data.epochs[epochs], figures]),
    values: values.map((one, column) => (isText(column) ? one : asNumber(one))),
  }));
}

// `row` with the runs of `seeds` alone, a set of texts; null stands for all.
function kept(row, seeds) {
  if (!seeds) return row;
  const of = (names) => names.filter((name) => seeds.has(name));
  const runs = row.runs.filter((run) => seeds.has(String(run.seed)));
  return { ...row, runs, missing: of(row.missing), diverged: of(row.diverged) };
}

const expected = (row) => row.runs.length + row.missing.length;
const unit = (row) => (new Set(row.runs.map((run) => run.seed)).size < row.runs.length ? "runs" : "seeds");
const valuesOf = (row, column) => row.runs.map((run) => run.values[column]).filter((value) => value !== null);

// Of each column, how many digits its numbers have behind the point in a table of `rows`.
const digitsFor = (rows) =>
  data.columns.map(([, form, digits, deviation], column) =>
    form === "number" && digits === null ? commonDigits(rows.map((row) => valuesOf(row, column)), deviation) : digits);

function cellOf(row, column, digits) {
  const lost = row.diverged.length;
  const told = lost ? `diverged ${lost} of ${expected(row)}` : "";
  if (!row.runs.length) return { text: told || "not run", value: null };
  const values = valuesOf(row, column);
  if (isText(column)) return { text: [...new Set(values)].join(" | ") || NOTHING, value: null };
  const complete = tells(column) ? expected(row) - lost : row.runs.length;
  const lacking = values.length === complete ? "" : ` (${values.length}/${expected(row)} ${unit(row)})`;
  const [, form, , deviation] = data.columns[column];
  const text = values.length ? `${numberText(values, form, digits, deviation)}${lacking}` : NOTHING;
  const finite = values.filter(Number.isFinite);
  return {
    text: told && tells(column) ? `${text} (${told})` : text,
    value: finite.length ? summarise(finite).mean : null,
  };
}

function countOf(row) {
  const n = row.runs.length;
  const of = n < expected(row) ? `/${expected(row)}` : "";
  return { text: n === 1 && !of ? "1 seed" : `${n}${of} ${unit(row)}`, value: n };
}

const cellsOf = (row, digits) => [...data.columns.map((_, column) => cellOf(row, column, digits[column])), countOf(row)];

// How many runs all rows have, and what they are counted as; null if they differ, or one lacks some.
function runsOfEach(rows) {
  const found = new Set(rows.map((row) => `${row.runs.length} ${unit(row)}`));
  return found.size === 1 && rows[0].runs.length && !rows.some((row) => row.missing.length) ? [...found][0] : null;
}

function cellsInWords(rows) {
  const several = runsOfEach(rows);
  const units = new Set(rows.map(unit));
  if (several === null) return `Mean ± standard deviation (n − 1) over the n ${units.size === 1 ? [...units][0] : "runs"} of a row.`;
  return several.startsWith("1 ") ? `Values of one ${unit(rows[0]).slice(0, -1)} each.` : `Mean ± standard deviation (n − 1) over ${several}.`;
}

function meansAlone(rows) {
  const alone = data.columns.filter((column) => !deviates(column) && !WITHOUT_DEVIATION.includes(column[1]));
  const titles = alone.map(([title]) => title);
  const none = !titles.length || rows.every((row) => row.runs.length < 2);
  return none ? "" : `Means without a deviation: ${titles.join("; ")}.`;
}

function inOrder(first, second) {
  const place = (value) => {
    if (value === undefined) return [0, 0, ""];
    return value.trim() === "" || Number.isNaN(Number(value)) ? [2, 0, value] : [1, Number(value), ""];
  };
  const [a, b] = [place(first), place(second)];
  const i = [0, 1, 2].find((at) => a[at] !== b[at]);
  return i === undefined ? 0 : a[i] < b[i] ? -1 : 1;
}

// Rows by the value of a key. What was computed otherwise is never in the mean of what was not.
function groupsBy(key, rows) {
  const found = new Map();
  for (const row of rows) {
    const value = row.keys[key];
    const name = JSON.stringify([value ?? null, row.computed]);
    if (!found.has(name)) found.set(name, { value, computed: row.computed, runs: [], missing: [], diverged: [] });
    for (const part of ["runs", "missing", "diverged"]) found.get(name)[part].push(...row[part]);
  }
  const groups = [...found.values()].sort((a, b) => inOrder(a.value, b.value));
  for (const group of groups) {
    group.runs.sort((a, b) => a.seed - b.seed);
    group.label = (group.value ?? "") + (group.computed ? `, computed ${group.computed}` : "");
    group.mixed = new Set(group.runs.map((run) => run.texts)).size > 1;
  }
  return groups;
}

function bySeed(row, column) {
  const found = new Map();
  for (const run of row.runs) {
    if (run.values[column] === null) continue;
    if (found.has(run.seed)) return null;
    found.set(run.seed, run.values[column]);
  }
  return found;
}

// Whether the runs of both have the same texts at each seed that both have.
function pairable(first, second) {
  const texts = (row, seed) =>
    [...new Set(row.runs.filter((run) => seed === null || run.seed === seed).map((run) => run.texts))].sort().join();
  const seeds = new Set(second.runs.map((run) => run.seed));
  const shared = first.runs.map((run) => run.seed).filter((seed) => seeds.has(seed));
  return (shared.length ? shared : [null]).every((seed) => texts(first, seed) === texts(second, seed));
}

// First minus second, in one column, for this pair alone.
function difference(first, second, column) {
  if (!pairable(first, second)) return { n: 0, why: data.other_texts };
  return compare(bySeed(first, column), bySeed(second, column), data.quantiles);
}
