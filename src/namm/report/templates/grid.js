// The grid of layers (columns) and heads (rows): a map of who holds how much, and the choice of whom to show.

/** Fill the grid, building it first where layers or heads are new. */
function paintGrid(grid, layers, heads, perCell, seen, chosen) {
  const shape = `${layers.join()}|${heads}`;
  if (grid.dataset.shape !== shape) {
    grid.dataset.shape = shape;
    buildGrid(grid, layers, heads);
  }
  for (const button of grid.querySelectorAll("[data-cell]")) {
    const cell = +button.dataset.cell, share = seen ? perCell[cell] / seen : 0;
    button.style.setProperty("--share", (share ** 0.75).toFixed(3)); // low shares would all look alike
    button.setAttribute("aria-pressed", chosen !== null && chosen[cell] === 1);
    const place = `layer ${layers[Math.floor(cell / heads)]}, head ${cell % heads}`;
    button.title = seen ? `${place}: holds ${percent(share)}` : place;
  }
  grid.classList.toggle("narrowed", chosen !== null);
}

function buildGrid(grid, layers, heads) {
  grid.style.setProperty("--layers", layers.length);
  const cells = [gridButton("", { cells: "" }, "all heads")];
  layers.forEach((layer, place) => {
    const label = place % 5 === 0 ? String(layer) : "";
    cells.push(gridButton(label, { cells: range(heads).map((head) => place * heads + head).join() }, `layer ${layer}`));
  });
  for (const head of range(heads)) {
    const row = layers.map((_, place) => place * heads + head);
    cells.push(gridButton(`h${head}`, { cells: row.join(), row: "" }, `head ${head} of every layer`));
    for (const cell of row) cells.push(gridButton("", { cell, cells: cell }, ""));
  }
  grid.replaceChildren(...cells);
  cells[0].tabIndex = 0;
}

const range = (length) => Array.from({ length }, (_, i) => i);

function gridButton(label, data, title) {
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = -1;
  button.textContent = label;
  button.title = title;
  Object.assign(button.dataset, data);
  return button;
}

/** Clicks choose, arrow keys move the focus. `ask` gets the cells that were chosen, null for all. */
function listenToGrid(grid, ask) {
  grid.addEventListener("click", (event) => {
    const said = event.target.dataset.cells;
    if (said !== undefined) ask(said === "" ? null : said.split(",").map(Number));
  });
  grid.addEventListener("keydown", (event) => {
    const buttons = [...grid.children], columns = +grid.style.getPropertyValue("--layers") + 1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = step && buttons[buttons.indexOf(document.activeElement) + step];
    if (step) event.preventDefault();
    if (!next) return;
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  });
}

/** The choice after `cells` were clicked: the first click narrows to them, further ones add or take away. */
function toggled(chosen, cells, total) {
  if (cells === null) return null;
  const next = chosen === null ? new Uint8Array(total) : chosen.slice();
  const on = cells.some((cell) => next[cell] === 0) ? 1 : 0;
  for (const cell of cells) next[cell] = on;
  return next.every((one) => one === 0) || next.every((one) => one === 1) ? null : next;
}
