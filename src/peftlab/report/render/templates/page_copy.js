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

function asLatex(table, { caption, notes }) {
  const { heads, sections } = brief(table);
  const marked = { best: (text) => `\\textbf{${text}}`, tied: (text) => `\\underline{${text}}` };
  const cell = ({ text, mark }) => (marked[mark] ?? ((same) => same))(latexEscaped(text));
  const lines = [];
  sections.forEach(({ title, rows }, number) => {
    if (number) lines.push("    \\midrule");
    if (title) lines.push(`    \\multicolumn{${heads.length}}{l}{\\textit{${latexEscaped(title)}}} \\\\`);
    lines.push(...rows.map((cells) => `    ${cells.map(cell).join(" & ")} \\\\`));
  });
  return [
    "% needs \\usepackage{booktabs} and \\usepackage{graphicx}", "\\begin{table}", "  \\centering",
    "  \\setlength{\\abovecaptionskip}{4pt}\\setlength{\\belowcaptionskip}{6pt}%  article has no room below one",
    `  \\caption{${latexEscaped(caption)}}`, `  \\label{tab:${data.label}}`,
    "  \\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%  never wider than the text",
    `  \\begin{tabular}{${heads.map((head) => (head.number ? "r" : "l")).join("")}}`, "    \\toprule",
    `    ${heads.map((head) => latexEscaped(head.title)).join(" & ")} \\\\`, "    \\midrule", ...lines,
    "    \\bottomrule", "  \\end{tabular}}", "  \\par\\smallskip", "  \\begin{minipage}{\\linewidth}\\footnotesize",
    ...notes.filter(Boolean).map((note) => `    ${latexEscaped(note)}\\par`), "  \\end{minipage}", "\\end{table}", "",
  ].join("\n");
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
