// The card of one token: who holds it at the shown time, and when the others let it go.

const card = document.getElementById("card");

/** Show the card of token `index`, for each panel that has the same token there. */
function showCard(panel, panels, index) {
  const text = panel.trace.tokens[index];
  const same = panels.filter((one) => one.trace.tokens[index] === text && one.state);
  const kind = panel.classes?.[index];
  card.replaceChildren(cardHead(text, index, kind), ...same.map((one) => cardPart(one, index, same.length > 1)), cardKey());
  card.hidden = false;
  for (const one of same) drawFate(one, index);
  placeCard(panel, panel.spans[index]);
  if (panel.text !== document.activeElement) return; // a pointer that passes by is not worth a word
  document.getElementById("said").textContent =
    `${text.trim() || "white space"}, position ${index}: ${same.map((one) => heldWords(one, index)).join("; ")}`;
}

function hideCard() {
  card.hidden = true;
}

function cardHead(text, index, kind) {
  const head = element("p", "card-head");
  const place = `${kind ? `${kind}, ` : ""}position ${number(index)}`;
  head.append(element("b", "", readable(text)), element("span", "", place));
  return head;
}

/** A token's text with its white space visible. */
function readable(text) {
  return text === "" ? "part of a character" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

function cardPart(panel, index, named) {
  const part = element("div", "card-part");
  if (named) part.append(element("p", "card-name", panel.trace.about.memory));
  part.append(element("p", "", heldWords(panel, index)));
  const canvas = element("canvas", "");
  canvas.dataset.panel = panel.index;
  part.append(canvas);
  const when = wentWords(panel, index);
  if (when) part.append(element("p", "card-when", when));
  return part;
}

function cardKey() {
  const key = element("p", "card-key");
  key.append(element("i", "now"), "held ", element("i", "early"), "forgotten early ", element("i", "late"), "lately");
  return key;
}

function heldWords(panel, index) {
  const { trace, state } = panel;
  if (index >= state.seen) return "not read yet";
  const held = trace.fate(index).map((gone) => (gone === 0 || gone > state.updates ? 1 : 0));
  const words = `held by ${number(sum(held))} of ${number(trace.cells)} heads`;
  if (panel.heads === null) return words;
  const chosen = held.filter((_, cell) => panel.heads[cell]);
  return `${words}, ${number(sum(chosen))} of the ${number(chosen.length)} chosen`;
}

/** When heads let a token go: "went: 61 after 1,024 tokens, 20 after 1,536". */
function wentWords(panel, index) {
  const { trace, state } = panel, went = new Map();
  for (const gone of trace.fate(index)) if (gone && gone <= state.updates) went.set(gone, (went.get(gone) || 0) + 1);
  if (!went.size || index >= state.seen) return "";
  const said = [...went].sort((a, b) => a[0] - b[0]).map(([gone, heads]) => {
    const update = trace.updates[gone - 1];
    return `${heads} ${update.earlier ? "earlier" : `at ${number(update.seen)}`}`;
  });
  return `let go by ${said.slice(0, 6).join(", ")}${said.length > 6 ? " …" : ""}${said.at(-1).endsWith("earlier") ? "" : " tokens"}`;
}

/** Draw the little grid, layers from left to right, heads from top to bottom. */
function drawFate(panel, index) {
  const canvas = card.querySelector(`canvas[data-panel="${panel.index}"]`);
  const { trace, state } = panel, { layers, heads } = trace.about, ratio = window.devicePixelRatio || 1;
  const side = Math.max(3, Math.min(9, Math.floor(276 / layers.length)));
  canvas.style.width = `${side * layers.length}px`;
  canvas.style.height = `${side * heads}px`;
  [canvas.width, canvas.height] = [side * layers.length * ratio, side * heads * ratio];
  const pen = canvas.getContext("2d"), style = getComputedStyle(card);
  const colour = (name) => style.getPropertyValue(name);
  pen.scale(ratio, ratio);
  trace.fate(index).forEach((gone, cell) => {
    const held = gone === 0 || gone > state.updates, read = index < state.seen;
    pen.globalAlpha = !read ? 0.25 : held ? 1 : 0.25 + (0.75 * gone) / Math.max(state.updates, 1);
    pen.fillStyle = colour(!read ? "--rule" : held ? "--held-line" : "--gone");
    pen.fillRect(Math.floor(cell / heads) * side, (cell % heads) * side, side - 1, side - 1);
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "layers from left to right, heads from top to bottom");
}

/** In the free place beside the text, if there is one; else below the token, or above it. Narrow screens dock it. */
function placeCard(panel, span) {
  const last = panel.find(".classes").hidden ? ".axis" : ".classes";
  const beside = panel.find(last).getBoundingClientRect(), text = panel.text.getBoundingClientRect();
  if (beside.width && beside.left > text.right && beside.bottom + 24 + card.offsetHeight < window.innerHeight) {
    card.style.left = `${beside.right - panel.find(".rail").clientWidth}px`;
    card.style.top = `${beside.bottom + 20}px`;
    return;
  }
  const at = span.getClientRects()[0] || span.getBoundingClientRect(), gap = 10;
  const below = at.bottom + gap + card.offsetHeight < window.innerHeight;
  card.classList.toggle("high", at.top > window.innerHeight / 2);
  card.style.left = `${Math.max(8, Math.min(at.left - 16, window.innerWidth - card.offsetWidth - 8))}px`;
  card.style.top = `${below ? at.bottom + gap : Math.max(8, at.top - gap - card.offsetHeight)}px`;
}

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}
