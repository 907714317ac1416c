// What is kept of each class of tokens: a table for each memory, and the dialog that compares texts.

const FEW = 20; // tokens; the share of a smaller class is mostly chance

/**
 * What the chosen heads hold of each class, of the tokens that an update has judged.
 * @param names the class of each token
 * @param held chosen heads that hold each token, of `heads`
 * @param updates tokens read at each update that was made
 * @returns [{name, tokens, kept, ratio, near}], in the order in which classes first stand in the text
 */
function classShares(names, held, heads, updates) {
  const judged = Math.min(updates.at(-1) ?? held.length, names.length), classes = new Map();
  const edges = updates.length ? updates : [judged];
  let from = 0, all = 0;
  for (const edge of edges) {
    const to = Math.min(edge, judged), mean = to > from ? sum(held.subarray(from, to)) / (to - from) : 0;
    for (let token = from; token < to; token++) {
      const found = classes.get(names[token]) || { name: names[token], tokens: 0, held: 0, near: 0 };
      found.tokens++;
      found.held += held[token];
      found.near += mean;
      classes.set(found.name, found);
    }
    all += mean * (to - from);
    from = Math.max(from, to);
  }
  const part = (above, below) => (below ? above / below : null);
  return [...classes.values()].map(({ name, tokens, held: kept, near }) => (
    { name, tokens, kept: kept / tokens / heads, ratio: part(kept / tokens, all / judged), near: part(kept, near) }));
}

/** Write the table, its rows sorted as `order` has the names. */
function paintClasses(table, order, rows) {
  const body = table.tBodies[0];
  rows.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  while (body.rows.length > rows.length) body.deleteRow(-1);
  while (body.rows.length < rows.length) {
    const row = body.insertRow();
    row.append(element("th"), ...range(4).map(() => element("td")));
    row.firstChild.scope = "row";
  }
  rows.forEach((row, place) => {
    const [name, tokens, kept, ratio, near] = body.rows[place].cells;
    write(name, row.name + (row.tokens < FEW ? "*" : ""));
    write(tokens, number(row.tokens));
    write(kept, percent(row.kept));
    paintRatio(ratio, row.ratio);
    paintRatio(near, row.near);
  });
}

/** Blue where more than usual was kept, orange where less; the deeper, the further from 1. */
function paintRatio(cell, ratio) {
  write(cell, ratio === null ? "\u2013" : ratio.toFixed(2));
  cell.className = ratio === null ? "" : ratio >= 1 ? "more" : "less";
  cell.style.setProperty("--s", ratio ? Math.min(1, Math.abs(Math.log(ratio) / Math.log(4))).toFixed(2) : 1);
}

function openClasses() {
  const dialog = document.getElementById("classes");
  document.getElementById("open-classes").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
}
