// What one memory held over time. Fed with events, one by one and in order; asked what was held at a time.

/** Bytes of base64. */
function decodeBytes(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

class Trace {
  constructor() {
    this.clear();
  }

  clear() {
    this.about = null; // the last start event
    this.tokens = []; // the text of each token
    this.seen = 0; // tokens read
    this.updates = []; // {seen, earlier}; `earlier`: of what had gone before this page watched
    this.samples = []; // {seen, held, full}: bytes, ascending in `seen`
    this.cells = 0; // layers times heads
    this.capacity = 0; // tokens that `forgotten` has room for
    // [cell, token], cell = layer * heads + head: 0 while held, else 1 + the index of the update at which it went.
    // What went does not come back, so this is the whole history.
    this.forgotten = new Uint16Array(0);
  }

  feed(event) {
    const take = { start: this.start, read: this.read, update: this.update, token: this.token, end: this.end };
    take[event.type]?.call(this, event);
  }

  start(event) {
    if (this.goesOn(event)) this.cut(event.continues);
    else this.clear();
    this.about = event;
    this.cells = event.layers.length * event.heads;
    this.tokens = event.tokens.slice();
    this.seen = event.continues;
    this.reserve(this.tokens.length);
    if (!event.held) return;
    if (this.mark(decodeBytes(event.held), event.continues, this.updates.length + 1)) {
      this.updates.push({ seen: event.continues, earlier: true });
    }
  }

  /** Whether this trace knows the tokens that the event continues from. */
  goesOn(event) {
    const known = this.about, text = (tokens) => tokens.slice(0, event.continues).join("");
    return event.continues > 0 && known !== null && known.memory === event.memory && known.heads === event.heads
      && known.layers.length === event.layers.length && event.continues <= this.tokens.length
      && text(event.tokens) === text(this.tokens);
  }

  /** Forget the history behind the first `tokens` tokens. */
  cut(tokens) {
    this.updates = this.updates.filter((update) => update.seen <= tokens);
    this.samples = this.samples.filter((sample) => sample.seen <= tokens);
    const last = this.updates.length;
    for (let cell = 0; cell < this.cells; cell++) {
      const row = this.forgotten.subarray(cell * this.capacity, (cell + 1) * this.capacity);
      row.fill(0, tokens);
      for (let token = 0; token < tokens; token++) if (row[token] > last) row[token] = 0;
    }
  }

  read(event) {
    this.seen = Math.max(this.seen, event.seen);
    this.sample(event);
  }

  update(event) {
    this.reserve(event.seen);
    this.updates.push({ seen: event.seen, earlier: false });
    this.mark(decodeBytes(event.held), event.seen, this.updates.length);
    this.read(event);
  }

  token(event) {
    this.tokens.push(...event.tokens);
    this.seen = Math.max(this.seen, this.tokens.length);
    this.reserve(this.tokens.length);
  }

  end(event) {
    this.sample({ ...event, seen: this.seen });
  }

  sample(event) {
    if (this.samples.length && this.samples.at(-1).seen === event.seen) this.samples.pop();
    this.samples.push({ seen: event.seen, held: event.bytes_held, full: event.bytes_full });
  }

  /** Room for so many tokens. */
  reserve(tokens) {
    if (tokens <= this.capacity && this.forgotten.length === this.cells * this.capacity) return;
    const capacity = Math.max(512, tokens + (tokens >> 1)), wider = new Uint16Array(this.cells * capacity);
    for (let cell = 0; cell < this.cells && this.capacity; cell++) {
      wider.set(this.forgotten.subarray(cell * this.capacity, (cell + 1) * this.capacity), cell * capacity);
    }
    this.forgotten = wider;
    this.capacity = capacity;
  }

  /** Tokens that `bits` does not hold, and that were held so far, went at update `stamp`. Returns how many did. */
  mark(bits, seen, stamp) {
    const stride = Math.ceil(seen / 8);
    let gone = 0;
    for (let cell = 0; cell < this.cells; cell++) {
      const row = cell * this.capacity, from = cell * stride;
      for (let token = 0; token < seen; token++) {
        if (this.forgotten[row + token] === 0 && !(bits[from + (token >> 3)] & (128 >> (token & 7)))) {
          this.forgotten[row + token] = stamp;
          gone++;
        }
      }
    }
    return gone;
  }

  /** What there was when `time` tokens had been read (Infinity: now): updates made, and tokens read. */
  at(time) {
    if (time === Infinity) return { updates: this.updates.length, seen: this.seen };
    let made = 0;
    while (made < this.updates.length && this.updates[made].seen <= time) made++;
    return { updates: made, seen: Math.min(time, this.seen) };
  }

  /** Bytes {seen, held, full} at `time`, or null. */
  bytesAt(time) {
    let found = null;
    for (const sample of this.samples) if (sample.seen <= time) found = sample;
    return found;
  }

  /**
   * Count who holds what at `state` (see `at`).
   * @param chosen Uint8Array [cell], 1 for the heads that count; null for all.
   * @returns perToken Uint16Array [token]: chosen heads that hold it; perCell Uint32Array [cell]: tokens it holds.
   */
  count(state, chosen) {
    const perToken = new Uint16Array(state.seen), perCell = new Uint32Array(this.cells);
    for (let cell = 0; cell < this.cells; cell++) {
      const row = cell * this.capacity, counts = chosen === null || chosen[cell] === 1;
      let held = 0;
      for (let token = 0; token < state.seen; token++) {
        const gone = this.forgotten[row + token];
        if (gone === 0 || gone > state.updates) {
          held++;
          if (counts) perToken[token]++;
        }
      }
      perCell[cell] = held;
    }
    return { perToken, perCell };
  }

  /** Of one token the update at which each cell let it go: [cell], 0 while held. */
  fate(token) {
    return Array.from({ length: this.cells }, (_, cell) => this.forgotten[cell * this.capacity + token]);
  }
}
