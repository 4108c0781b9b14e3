// Figures of runs that are chosen in the page: to the bit and letter those of peftlab.report.statistics and .columns.

// As numpy adds up: eight sums side by side, halves of what is long.
function total(values) {
  const n = values.length;
  if (n < 8) return values.reduce((sum, value) => sum + value, 0);
  if (n > 128) {
    const half = Math.floor(n / 2) - (Math.floor(n / 2) % 8);
    return total(values.slice(0, half)) + total(values.slice(half));
  }
  const eight = values.slice(0, 8);
  const end = n - (n % 8);
  for (let i = 8; i < end; i++) eight[i % 8] += values[i];
  const [a, b, c, d, e, f, g, h] = eight;
  return values.slice(end).reduce((sum, value) => sum + value, a + b + (c + d) + (e + f + (g + h)));
}

function summarise(values) {
  const n = values.length;
  if (!n) return { n, mean: null, std: null };
  if (!values.every(Number.isFinite)) return { n, mean: NaN, std: null };
  const mean = total(values) / n;
  const squares = values.map((value) => (value - mean) * (value - mean));
  return { n, mean, std: n > 1 ? Math.sqrt(total(squares) / (n - 1)) : null };
}

const MINUS = "\u2212";

// Of a number that lies exactly between two, Python writes the even one, toFixed and toExponential the larger one.
const even = (digits) => "02468".includes(digits.at(-1));
const between = (rest) => /^50*$/.test(rest);

function decimals(value, digits) {
  const size = Math.abs(value);
  if (size >= 1e21) return `${BigInt(size)}${digits ? `.${"0".repeat(digits)}` : ""}`;
  const exact = size.toFixed(Math.min(100, digits + 60));
  const end = exact.indexOf(".") + (digits ? 1 + digits : 0);
  const cut = exact.slice(0, end);
  return between(exact.slice(end).replace(".", "")) && even(cut) ? cut : size.toFixed(digits);
}

function fixed(value, sign = false, digits = 4) {
  const text = decimals(value, digits);
  if (!/[1-9]/.test(text)) return text;
  return (value < 0 ? MINUS : sign ? "+" : "") + text;
}

const commas = (text) => text.replace(/\B(?=(\d{3})+(?!\d))(?<!\..*)/g, ",");
const whole = (value) => (value < 0 ? MINUS : "") + commas(decimals(value, 0));

function general(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [exact, power] = size.toExponential(60).split("e");
  const cut = exact.slice(0, 5); // four digits and the point
  const text = between(exact.slice(5)) && even(cut) ? `${cut}e${power}` : size.toExponential(3);
  const [mantissa, exponent] = text.split("e");
  const stripped = (number) => (number.includes(".") ? number.replace(/\.?0+$/, "") : number);
  const sign = value < 0 ? MINUS : "";
  if (exponent >= -4 && exponent < 4) return sign + stripped(Number(text).toFixed(3 - exponent));
  return `${sign}${stripped(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

const plainNumber = (value) => (Math.abs(value) >= 1000 ? whole(value) : general(value));

const withCommas = (value, digits) => {
  const text = decimals(value, digits);
  return (value < 0 && /[1-9]/.test(text) ? MINUS : "") + commas(text);
};

// Digits behind the point with which `size`, above 0, has so many that count.
const digitsThatCount = (size, counting) => counting - 1 - Number(size.toExponential(counting - 1).split("e")[1]);

// How many digits behind the point all means of a column of numbers have; null if each had better have its own.
function commonDigits(cells, deviation = true) {
  const summaries = cells.map(summarise);
  const means = summaries.map(({ mean }) => mean).filter(Number.isFinite);
  const sizes = means.filter((mean) => mean !== 0).map(Math.abs);
  if (!sizes.length) return means.length ? 0 : null;
  const [largest, smallest] = [sizes.reduce((a, b) => Math.max(a, b)), sizes.reduce((a, b) => Math.min(a, b))];
  const ofLargest = Math.max(0, digitsThatCount(largest, 4));
  const digits = Math.max(ofLargest, digitsThatCount(smallest, 2));
  if (largest < 1e-4 || digits > ofLargest + 2) return null;
  const stds = summaries.map(({ std }) => std).filter((std) => deviation && std);
  const ends = [...sizes, ...stds].map((size) => (decimals(size, digits).split(".")[1] ?? "").replace(/0+$/, ""));
  return ends.reduce((most, end) => Math.max(most, end.length), 0);
}

const DIGITS = { score: 4, percent: 2, difference: 4, seconds: 1 };
const WITHOUT_DEVIATION = ["count", "text"];
const TELLING = ["score", "percent", "difference"];

function numberText(values, form, digits = null, deviation = true) {
  const lost = values.filter((value) => !Number.isFinite(value)).length;
  if (lost) return lost === values.length ? "not finite" : `not finite in ${lost} of ${values.length}`;
  if (form === "count") {
    const [low, high] = [whole(Math.min(...values)), whole(Math.max(...values))];
    return low === high ? low : `${low} … ${high}`;
  }
  if (form === "difference" && values.every((value) => value === 0)) return "0 (exactly)";
  const { mean, std } = summarise(values);
  const alone = std === null || !deviation;
  let places = digits ?? DIGITS[form];
  if (TELLING.includes(form)) {
    const scale = form === "percent" ? 100 : 1;
    const text = fixed(scale * mean, form === "difference", places);
    return alone ? text : `${text} ± ${decimals(scale * std, places)}`;
  }
  places ??= commonDigits([values], deviation);
  const text = (number) => (places === null ? plainNumber(number) : withCommas(number, places));
  return alone ? text(mean) : `${text(mean)} ± ${text(std)}`;
}

// Two-sided p of Student's t for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
function pOfT(t, freedom) {
  const angle = Math.atan(Math.abs(t) / Math.sqrt(freedom));
  const square = Math.cos(angle) ** 2;
  const odd = freedom % 2;
  let term = odd ? Math.cos(angle) : 1;
  let sum = freedom === 1 ? 0 : term;
  for (let k = odd ? 3 : 2; k <= freedom - 2; k += 2) {
    term *= (square * (k - 1)) / k;
    sum += term;
  }
  const inside = odd ? (2 / Math.PI) * (angle + Math.sin(angle) * sum) : Math.sin(angle) * sum;
  return Math.max(0, 1 - inside);
}

// First minus second of two maps seed → value, paired by seed; null stands for a row with a seed twice.
function compare(first, second, quantiles) {
  if (!first || !second) return { n: 0, why: "several runs of one seed: nothing can be paired by seed" };
  const seeds = [...first.keys()].filter((seed) => second.has(seed)).sort((a, b) => a - b);
  const n = seeds.length;
  if (!n) return { n, why: "no shared seed" };
  const pairs = seeds.map((seed) => [first.get(seed), second.get(seed)]);
  if (!pairs.flat().every(Number.isFinite)) return { n, why: "a value is not finite" };
  const { mean, std } = summarise(pairs.map(([a, b]) => a - b));
  if (n === 1) return { n, mean, why: "one shared seed" };
  // What rounding leaves of equal differences is no variance.
  if (std <= 8 * Number.EPSILON * Math.max(...pairs.flat().map(Math.abs))) {
    const same = pairs.some(([a, b]) => a !== b) ? "the same difference at every seed" : "no difference at any seed";
    return { n, mean, why: `${same}: no variance to test against` };
  }
  const error = std / Math.sqrt(n);
  const half = quantiles[n - 2] * error;
  return { n, mean, p: pOfT(mean / error, n - 1), interval: [mean - half, mean + half] };
}

const pText = (p) => (p < 0.0001 ? "< 0.0001" : decimals(p, p < 0.01 ? 4 : 3));
