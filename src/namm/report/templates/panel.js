// One memory: its sizes, its layers and heads, and the text shaded by what is held.

const LEVELS = 16; // shades between "no head" and "all heads"; classes k0 to k16 of the style sheet
const UNREAD = 255; // level of a token that was not read yet

const NOTHING = "Nothing read yet. What the model reads appears here, shaded by how many of its heads still hold it.";

const number = (value) => Math.round(value).toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`;

/** Two byte counts in the unit of the larger: "2.3 of 8.9 MB". */
function bytesOf(held, full) {
  const [name, unit] = full < 1e6 ? ["kB", 1e3] : full < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  const said = (bytes) => (bytes / unit).toFixed(full / unit < 99.5 ? 1 : 0);
  return `${said(held)} of ${said(full)} ${name}`;
}

const sum = (counts) => counts.reduce((total, count) => total + count, 0);

class Panel {
  /**
   * @param index place of the panel: 0 left, 1 right.
   * @param asks what the page does on a choice: head(cells), token(panel, index or null), time(tokens), scroll(panel),
   *   repaint().
   */
  constructor(index, asks) {
    this.trace = new Trace();
    this.index = index;
    this.asks = asks;
    this.element = document.getElementById("panel").content.firstElementChild.cloneNode(true);
    this.text = this.find(".text");
    this.strip = this.find(".strip canvas");
    this.spans = [];
    this.shown = []; // the text of each span
    this.levels = new Uint8Array(0); // as painted, [token]
    this.follows = false; // whether the text scrolls with the reading
    this.chosen = null; // index of the token under the pointer
    this.classes = null; // the class of each token, where it is known
    this.listen();
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  feed(event) {
    this.trace.feed(event);
    if (event.type === "start") this.follows = true;
  }

  listen() {
    const text = this.text;
    text.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && event.target.dataset.i) this.asks.token(this, +event.target.dataset.i);
    });
    text.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !text.matches(":focus-visible")) this.asks.token(this, null);
    });
    text.addEventListener("click", (event) => {
      const at = event.target.dataset.i;
      this.asks.token(this, at === undefined || (+at === this.chosen && event.pointerType !== "mouse") ? null : +at);
    });
    text.addEventListener("keydown", (event) => this.walk(event));
    text.addEventListener("blur", () => this.asks.token(this, null));
    text.addEventListener("scroll", () => this.asks.scroll(this), { passive: true });
    for (const kind of ["wheel", "touchmove", "keydown"]) {
      text.addEventListener(kind, () => (this.follows = false), { passive: true });
    }
    this.find(".curve svg").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      this.asks.time(((event.clientX - box.left) / box.width) * this.farthest());
    });
    this.find(".strip").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      this.reveal(Math.floor(((event.clientX - box.left) / box.width) * this.spans.length), true);
      this.follows = false;
    });
    this.find(".all").addEventListener("click", () => this.asks.head(null));
    this.find(".classes").addEventListener("toggle", () => this.asks.repaint());
    listenToGrid(this.find(".grid"), this.asks.head);
  }

  // -- painting ------------------------------------------------------------------------------------------------------

  /**
   * Bring everything to a time.
   * @param view {time: tokens read, Infinity for now; heads: Uint8Array [cell] or null for all; top: bytes of the
   *   largest full cache on the page}
   */
  paint(view) {
    const trace = this.trace, about = trace.about;
    this.element.classList.toggle("waiting", about === null);
    this.paintName();
    if (about === null) {
      this.writeTokens();
      this.text.replaceChildren(element("p", "nothing", NOTHING));
      return;
    }
    this.state = trace.at(view.time);
    this.heads = view.heads;
    const counts = trace.count(this.state, view.heads);
    const heads = view.heads === null ? trace.cells : sum(view.heads);
    this.paintText(counts.perToken, heads);
    this.paintSizes(view);
    this.paintHeads(counts, view.heads, heads);
    this.paintStrip(counts.perToken, heads);
    this.paintClasses(counts.perToken, heads);
    if (this.follows && view.time === Infinity) this.reveal(Math.min(trace.seen, this.spans.length) - 1, false);
    this.paintWindow();
  }

  paintName() {
    const known = this.trace.about || this.planned || {};
    write(this.find("h2"), known.memory || "Memory");
    write(this.find(".rule"), known.rule || "");
    this.text.setAttribute("aria-label", `The text as ${known.memory || "the memory"} holds it; arrow keys walk`);
  }

  paintText(perToken, heads) {
    this.writeTokens();
    const edges = new Set(this.trace.updates.slice(0, this.state.updates).map((update) => update.seen));
    for (let i = 0; i < this.spans.length; i++) {
      const held = perToken[i], read = i < this.state.seen;
      const level = !read ? UNREAD : held === 0 ? 0 : Math.max(1, Math.round((LEVELS * held) / heads));
      const painted = level | (edges.has(i) ? 64 : 0);
      if (painted === this.levels[i]) continue;
      this.levels[i] = painted;
      this.spans[i].className = (read ? `k${level}` : "u") + (edges.has(i) ? " edge" : "");
    }
    if (this.chosen !== null) this.spans[this.chosen]?.classList.add("chosen");
  }

  /** Make the spans those of the tokens: what is the same stays. */
  writeTokens() {
    const tokens = this.trace.tokens;
    let same = Math.min(this.shown.length, tokens.length);
    if (this.written !== tokens) {
      same = 0;
      while (same < this.shown.length && same < tokens.length && this.shown[same] === tokens[same]) same++;
    }
    this.written = tokens;
    while (this.spans.length > same) this.spans.pop().remove();
    if (same === 0) this.text.textContent = "";
    if (same === tokens.length) return;
    const added = document.createDocumentFragment();
    for (let i = same; i < tokens.length; i++) {
      this.spans[i] = tokenSpan(tokens[i], i);
      added.append(this.spans[i]);
    }
    this.text.append(added);
    this.shown = tokens.slice();
    const levels = new Uint8Array(tokens.length).fill(254);
    levels.set(this.levels.subarray(0, same));
    this.levels = levels;
  }

  paintSizes(view) {
    const now = this.trace.bytesAt(view.time), [big, small] = this.find(".share").children;
    big.textContent = now && now.full ? percent(now.held / now.full) : "–";
    small.textContent = now ? bytesOf(now.held, now.full) : "nothing read yet";
    const far = this.farthest(), top = view.top || 1, unit = this.trace.about.bytes_per_token;
    const x = (seen) => ((100 * seen) / far).toFixed(2), y = (bytes) => (100 - (94 * bytes) / top).toFixed(2);
    const line = growth(this.trace.samples, unit).map(([seen, bytes]) => `${x(seen)} ${y(bytes)}`);
    const last = this.trace.samples.at(-1), full = last ? last.full : far * unit;
    this.find(".full").setAttribute("d", `M0 100L${x(last ? last.seen : far)} ${y(full)}`);
    this.find(".held").setAttribute("d", `M${line.join("L")}`);
    this.find(".area").setAttribute("d", `M${line.join("L")}L${x(last ? last.seen : 0)} 100L0 100Z`);
    this.find(".mark").setAttribute("d", `M${x(this.state.seen)} 0V100`);
    write(this.find(".most"), bytesOf(0, top).split(" of ")[1]);
    write(this.find(".far"), `${number(far)} tokens`);
    const spoken = now ? `${bytesOf(now.held, now.full)} held` : "nothing read";
    this.find(".curve svg").setAttribute("aria-label", `Bytes over tokens read: ${spoken}`);
  }

  /** Tokens at the right end of curve and strip. */
  farthest() {
    return Math.max(this.trace.tokens.length, this.trace.seen, 1);
  }

  paintHeads({ perToken, perCell }, chosen, heads) {
    const { layers, heads: rows } = this.trace.about, seen = this.state.seen;
    const held = seen ? sum(perToken) / (seen * heads) : 0;
    const who = chosen === null ? "All heads" : `${number(heads)} of ${number(this.trace.cells)} heads`;
    this.find(".heads-note span").textContent = seen ? `${who} hold ${percent(held)} of tokens` : who;
    this.find(".all").disabled = chosen === null;
    paintGrid(this.find(".grid"), layers, rows, perCell, seen, chosen);
  }

  /** The whole text as bars, one for each two pixels: the share of chosen heads that hold what stands there. */
  paintStrip(perToken, heads) {
    const canvas = this.strip, ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d"), style = getComputedStyle(this.element);
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = style.getPropertyValue("--held-line");
    const bars = Math.max(1, Math.min(Math.floor(width / (2 * ratio)), this.spans.length)), all = this.spans.length;
    for (let bar = 0; bar < bars; bar++) {
      const from = Math.floor((bar * all) / bars), to = Math.min(Math.floor(((bar + 1) * all) / bars), perToken.length);
      if (to <= from) break;
      const share = sum(perToken.subarray(from, to)) / ((to - from) * heads);
      const left = Math.round((bar * width) / bars), right = Math.round(((bar + 1) * width) / bars);
      const tall = Math.max(share > 0 ? ratio : 0, share * height);
      pen.fillRect(left, height - tall, right - left, tall);
    }
  }

  paintClasses(perToken, heads) {
    const part = this.find(".classes");
    part.hidden = this.classes === null;
    if (part.hidden || !part.open) return;
    const updates = this.trace.updates.slice(0, this.state.updates).map((update) => update.seen);
    const rows = this.state.updates || !this.trace.updates.length ? classShares(this.classes, perToken, heads, updates) : [];
    paintClasses(part.querySelector("table"), page.classes, rows);
  }

  /** Show on the strip which part of the text is in sight. */
  paintWindow() {
    const mark = this.find(".strip i"), all = this.spans.length;
    const first = this.firstBelow(this.text.scrollTop), last = this.firstBelow(this.text.scrollTop + this.text.clientHeight);
    mark.hidden = all === 0 || (first === 0 && last >= all);
    mark.style.left = `${(100 * first) / all}%`;
    mark.style.width = `${(100 * Math.max(last - first, 1)) / all}%`;
  }

  /** The first token whose line ends below `y` pixels of the text. */
  firstBelow(y) {
    let low = 0, high = this.spans.length;
    while (low < high) {
      const middle = (low + high) >> 1, span = this.spans[middle];
      if (span.offsetTop + span.offsetHeight <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // -- tokens --------------------------------------------------------------------------------------------------------

  /** Outline a token, or none. */
  choose(index) {
    if (this.chosen !== null) this.spans[this.chosen]?.classList.remove("chosen");
    this.chosen = index !== null && index < this.spans.length ? index : null;
    if (this.chosen !== null) this.spans[this.chosen].classList.add("chosen");
  }

  /** Scroll a token into the text's box; the page itself stays where it is. */
  reveal(index, centred) {
    const span = this.spans[index], box = this.text;
    if (!span) return;
    const top = span.offsetTop, bottom = top + span.offsetHeight;
    if (centred) box.scrollTop = top - box.clientHeight / 2;
    else if (top < box.scrollTop + 8) box.scrollTop = top - 24;
    else if (bottom > box.scrollTop + box.clientHeight - 24) box.scrollTop = bottom - box.clientHeight + 48;
  }

  inSight(index) {
    const span = this.spans[index], top = this.text.scrollTop;
    return span !== undefined && span.offsetTop + span.offsetHeight > top && span.offsetTop < top + this.text.clientHeight;
  }

  walk(event) {
    const last = this.spans.length - 1, here = this.chosen;
    if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {
      ArrowRight: () => Math.min(here + 1, last), ArrowLeft: () => Math.max(here - 1, 0),
      ArrowDown: () => this.beside(here, 1), ArrowUp: () => this.beside(here, -1), Home: () => 0, End: () => last,
    };
    if (event.key === "Escape") this.asks.token(this, null);
    else if (steps[event.key]) {
      const to = here === null ? Math.min(this.firstBelow(this.text.scrollTop), last) : steps[event.key]();
      this.reveal(to, false);
      this.asks.token(this, to, true);
      event.preventDefault();
    }
  }

  /** The token nearest below (1) or above (-1) token `index`. */
  beside(index, direction) {
    const from = this.spans[index].offsetLeft, line = this.spans[index].offsetTop;
    let best = index, distance = Infinity, row = null;
    for (let i = index + direction; i >= 0 && i < this.spans.length; i += direction) {
      const { offsetLeft: left, offsetTop: top } = this.spans[i];
      if (Math.abs(top - line) < 4) continue;
      if (row === null) row = top;
      else if (Math.abs(top - row) > 4) break;
      if (Math.abs(left - from) < distance) [best, distance] = [i, Math.abs(left - from)];
    }
    return best;
  }
}

/** A token of the text; line ends are marked, or nothing would be there to shade. */
function tokenSpan(text, index) {
  const span = document.createElement("span");
  span.dataset.i = index;
  span.textContent = text.replaceAll("\r", "").replaceAll("\n", "↵\n");
  if (text === "") span.dataset.part = "";
  else if (/^<\|?[^\s<>]+\|?>$/.test(text)) span.dataset.special = "";
  return span;
}

/** Give an element a text, if it is another one: writing the same would cost a layout too. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Points [seen, bytes] of the curve: between two updates a memory grows like a full cache, then it drops. */
function growth(samples, unit) {
  const points = [[0, 0]];
  let before = { seen: 0, held: 0 };
  for (const sample of samples) {
    points.push([sample.seen, Math.max(before.held + (sample.seen - before.seen) * unit, sample.held)]);
    points.push([sample.seen, sample.held]);
    before = sample;
  }
  return points;
}
