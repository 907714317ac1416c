// The time that is shown: a slider over the updates of all panels, which stays at "now" until somebody moves it.

const STEP = 900; // milliseconds between two updates while playing

class Timeline {
  /** @param changed called whenever another time is to be shown. */
  constructor(changed) {
    this.slider = document.getElementById("slider");
    this.button = document.getElementById("play");
    this.moments = [0, Infinity]; // tokens read at each place of the slider; the last is now
    this.pinned = true;
    this.playing = null;
    this.changed = changed;
    this.slider.addEventListener("input", () => {
      this.pause();
      this.go(+this.slider.value);
    });
    this.button.addEventListener("click", () => (this.playing === null ? this.play() : this.pause()));
    document.getElementById("now").addEventListener("click", () => {
      this.pause();
      this.go(this.moments.length - 1);
    });
  }

  get time() {
    return this.moments[+this.slider.value];
  }

  /** Take in the updates of these traces; a time that is shown stays. */
  refresh(traces) {
    const shown = this.time, seen = new Set(traces.flatMap((trace) => trace.updates.map((update) => update.seen)));
    const made = [...seen].sort((a, b) => a - b);
    const rest = traces.some((trace) => trace.seen > (made.at(-1) ?? -1));
    this.moments = [0, ...(rest ? made : made.slice(0, -1)), Infinity];
    this.slider.max = this.moments.length - 1;
    const place = this.pinned ? -1 : this.moments.findIndex((moment) => moment >= shown);
    this.slider.value = place < 0 ? this.moments.length - 1 : place;
    this.tell(traces, made);
  }

  tell(traces, made) {
    const time = this.time, far = Math.max(0, ...traces.map((trace) => trace.seen));
    const at = Math.min(time, far), updates = made.filter((seen) => seen <= at).length;
    const words = far === 0 ? "nothing read yet"
      : `${number(at)} of ${number(Math.max(far, ...traces.map((trace) => trace.tokens.length)))} tokens read, ` +
        `update ${updates} of ${made.length}`;
    document.getElementById("when").textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.slider.disabled = this.button.disabled = made.length === 0;
    document.getElementById("now").disabled = time === Infinity;
  }

  go(place) {
    this.slider.value = place;
    this.pinned = place === this.moments.length - 1;
    this.changed();
  }

  /** Go to the update nearest to so many tokens. */
  goNear(tokens) {
    const far = (place) => Math.abs(Math.min(this.moments[place], 1e9) - tokens);
    const known = this.moments.length - 1;
    let best = known;
    for (let place = 0; place < known; place++) if (best === known || far(place) < far(best)) best = place;
    if (tokens > this.moments[known - 1] + 1) best = known;
    this.pause();
    this.go(best);
  }

  play() {
    if (+this.slider.value === this.moments.length - 1) this.go(0);
    this.playing = setInterval(() => {
      this.go(Math.min(+this.slider.value + 1, this.moments.length - 1));
      if (this.pinned) this.pause();
    }, STEP);
    this.showButton();
  }

  pause() {
    if (this.playing !== null) clearInterval(this.playing);
    this.playing = null;
    this.showButton();
  }

  showButton() {
    this.button.textContent = this.playing === null ? "Play" : "Pause";
    this.button.setAttribute("aria-pressed", this.playing !== null);
  }
}
