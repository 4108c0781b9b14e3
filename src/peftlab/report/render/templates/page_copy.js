// The table that is shown, as LaTeX, Markdown and CSV. A table here is {heads, sections, leads}; its last column says how
// many runs a row has. Beside it stand {caption, notes}.
const oneLine = (text) => text.split(/\s+/).filter(Boolean).join(" ");

function latexEscaped(text) {
  const plain = (sign) => sign <= "\x7f" || (sign >= "À" && sign <= "ſ");
  const code = (sign) => sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return [...oneLine(text)].map((sign) => data.signs[sign] ?? (plain(sign) ? sign : `[U+${code(sign)}]`)).join("");
}

// Without the last column, where all rows say the same there.
function brief({ heads, sections, leads }) {
  if (runsOfEach(sections.flatMap(({ rows }) => rows.map((cells) => cells.row))) === null) return { heads, sections, leads };
  const shorter = sections.map(({ title, rows }) => ({ title, rows: rows.map((cells) => cells.slice(0, -1)) }));
  return { heads: heads.slice(0, -1), sections: shorter, leads };
}

const widthOf = (text) =>
  data.paper.letters * [...text].map((sign) => data.paper.widths[sign] ?? data.paper.usual).reduce((sum, one) => sum + one, 0);
const widest = (lines) => Math.max(0, ...lines.map(widthOf));

function broken(text, room) {
  const lines = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && widthOf(longer) <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.length ? lines : [""];
}

// What of a table finds room on paper, as peftlab.report.render.paper has it.
const cellLines = (text, head) => broken(text, head.number ? data.paper.room : data.paper.text);

function headLines({ heads, sections }) {
  const rows = sections.flatMap((section) => section.rows);
  return heads.map((head, i) => {
    const cells = Math.max(0, ...rows.map((row) => widest(cellLines(row[i].text, head))));
    return broken(head.title, Math.max(cells, widest(head.title.split(/\s+/))));
  });
}

function blocksOf({ heads, sections, leads }, titles) {
  const rows = sections.flatMap((section) => section.rows);
  const widths = heads.map((head, i) => Math.max(widest(titles[i]), ...rows.map((row) => widest(cellLines(row[i].text, head)))));
  const figures = [...heads.keys()].slice(leads);
  let blocks = [figures];
  for (let count = 1; count <= figures.length; count++) {
    const size = Math.ceil(figures.length / count);
    blocks = Array.from({ length: Math.ceil(figures.length / size) }, (_, i) => figures.slice(i * size, (i + 1) * size));
    const beside = blocks[0].map((_, place) => Math.max(...blocks.filter((of) => place < of.length).map((of) => widths[of[place]])));
    const columns = [...widths.slice(0, leads), ...beside];
    if (columns.reduce((sum, one) => sum + one, 0) + data.paper.gap * (columns.length - 1) <= data.paper.room) break;
  }
  return blocks;
}

function asLatex(table, { caption, notes }) {
  const { heads, sections, leads } = brief(table);
  const titles = headLines({ heads, sections });
  const blocks = blocksOf({ heads, sections, leads }, titles);
  const size = leads + blocks[0].length;
  const marked = { best: (text) => `\\textbf{${text}}`, tied: (text) => `\\underline{${text}}` };
  const safe = (text) => (/^[[*]/.test(text) ? `{}${text}` : text);
  const line = (cells) => `${safe([...cells, ...Array(size - cells.length).fill("")].join(" & "))} \\\\`;
  const inLines = (lines, end, side) =>
    lines.length === 1 ? lines[0] : `\\begin{tabular}[${end}]{@{}${side}@{}}${lines.map(safe).join("\\\\")}\\end{tabular}`;
  const title = (i) => inLines(titles[i].map(latexEscaped), "b", heads[i].number ? "r" : "l");
  const cell = ({ text, mark }, i) =>
    inLines(cellLines(text, heads[i]).map(latexEscaped).map(marked[mark] ?? ((same) => same)), "t", "l");
  const made = [];
  blocks.forEach((columns, number) => {
    const shown = [...Array(leads).keys(), ...columns];
    if (number) made.push("\\midrule[\\heavyrulewidth]");
    made.push(line(shown.map(title)), "\\midrule");
    sections.forEach((section, place) => {
      if (place) made.push("\\midrule");
      if (section.title) made.push(`\\multicolumn{${size}}{@{}l@{}}{\\textit{${latexEscaped(section.title)}}} \\\\`);
      made.push(...section.rows.map((cells) => line(shown.map((i) => cell(cells[i], i)))));
    });
  });
  const values = {
    columns: heads.slice(0, size).map((head) => (head.number ? "r" : "l")).join(""),
    rows: made.map((row) => `    ${row}`).join("\n"),
    caption: latexEscaped(caption),
    label: data.label,
    notes: notes.filter(Boolean).map((note) => `    ${latexEscaped(note)}\\par`).join("\n"),
  };
  return data.latex.replace(/<< (\w+) >>/g, (_, name) => values[name]);
}

function markdownEscaped(text) {
  return oneLine(text)
    .replace(/[\\`*~$|]|(?<![\p{L}\p{N}])_|_(?![\p{L}\p{N}])|\](?=[(\[:])/gu, "\\$&")
    .replace(/&(?=#?[\p{L}\p{N}_]+;)/gu, "&amp;")
    .replace(/<(?=[A-Za-z/!?])/g, "&lt;")
    .replace(/^(#|>|[-+](?= )|\d+(?=[.)](?: |$))|=+$|-+$)/, (found) => (/^\d/.test(found) ? `${found}\\` : `\\${found}`));
}

function asMarkdown(table) {
  const { heads, sections } = brief(table);
  const marked = { best: (text) => `**${text}**`, tied: (text) => `<ins>${text}</ins>` };
  const cell = ({ text, mark }) => (marked[mark] ?? ((same) => same))(markdownEscaped(text));
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const lines = [
    line(heads.map((head) => markdownEscaped(head.title))), line(heads.map((head) => (head.number ? "---:" : "---"))),
  ];
  for (const { title, rows } of sections) {
    if (title) lines.push(line([`**${markdownEscaped(title)}**`, ...Array(heads.length - 1).fill("")]));
    lines.push(...rows.map((cells) => line(cells.map(cell))));
  }
  return `${lines.join("\n")}\n`;
}

// With full precision; a text is never a formula of a spreadsheet.
function asCsv({ heads, sections, leads }) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const formula = (text) => /^\s*[=+\-@]/.test(text) && (text.trim() === "" || Number.isNaN(Number(text)));
  const safe = (value) => quoted(value === null || Number.isNaN(value) ? "" : formula(String(value)) ? `'${value}` : String(value));
  const titles = heads.slice(0, leads).map((head) => head.title || "row");
  data.columns.forEach((column) => titles.push(column[0], ...(deviates(column) ? [`${column[0]}, std`] : [])));
  const lines = [["section", ...titles, "n"]];
  for (const section of sections) {
    for (const cells of section.rows) {
      const { row } = cells;
      const figures = data.columns.flatMap((_, column) => {
        const values = valuesOf(row, column);
        if (isText(column)) return [[...new Set(values)].join(" | ")];
        const { mean, std } = summarise(values);
        return deviates(data.columns[column]) ? [mean, std] : [mean];
      });
      lines.push([section.title, ...cells.slice(0, leads).map((cell) => cell.text), ...figures, row.runs.length]);
    }
  }
  const without = data.sections && lines.some(([title], number) => number && title) ? 0 : 1;
  return lines.map((line) => `${line.slice(without).map(safe).join(",")}\n`).join("");
}
