// The page: one or two panels, one time, one choice of heads, one token under the pointer.

const page = JSON.parse(document.getElementById("data").textContent); // {live, recordings, layer, classes}
const panels = [];
let chosenHeads = null; // Uint8Array [cell], or null for all
let chosenToken = null; // {panel, index}
let waiting = false; // whether a repaint is on its way

const timeline = new Timeline(() => {
  document.body.classList.toggle("moving", timeline.playing !== null || timeline.pinned);
  repaint();
});

/** Paint everything with the next frame, however many changes there are until then. */
function repaint() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    paintPage();
  });
}

function paintPage() {
  const traces = panels.map((panel) => panel.trace);
  timeline.refresh(traces);
  const cells = traces[0]?.cells;
  if (chosenHeads && (chosenHeads.length !== cells || traces.some((one) => one.about && one.cells !== cells))) chosenHeads = null;
  const top = Math.max(1, ...traces.map(largest));
  for (const panel of panels) panel.paint({ time: timeline.time, heads: chosenHeads, top });
  showToken();
}

/** Bytes of a full cache of all the tokens of a trace. */
function largest(trace) {
  return Math.max(trace.samples.at(-1)?.full || 0, trace.tokens.length * (trace.about?.bytes_per_token || 0));
}

// -- what panels ask for ---------------------------------------------------------------------------------------------

const asks = {
  head(cells) {
    chosenHeads = toggled(chosenHeads, cells, panels[0].trace.cells);
    repaint();
  },
  token(panel, index) {
    chosenToken = index === null ? null : { panel, index };
    showToken();
  },
  time(tokens) {
    timeline.goNear(tokens);
  },
  scroll(from) {
    from.paintWindow();
    for (const other of panels) if (other !== from && scrolledBy !== from) scrollLike(from, other);
    if (scrolledBy === from) scrolledBy = null;
    if (chosenToken && !chosenToken.panel.inSight(chosenToken.index)) asks.token(chosenToken.panel, null);
    else if (chosenToken) showToken();
  },
  repaint,
};

let scrolledBy = null; // the panel whose scrolling we caused, and which must not cause any in turn

function scrollLike(from, other) {
  const top = Math.min(from.text.scrollTop, other.text.scrollHeight - other.text.clientHeight);
  if (Math.abs(other.text.scrollTop - top) < 1) return;
  scrolledBy = other;
  other.text.scrollTop = top;
}

function showToken() {
  for (const panel of panels) panel.choose(chosenToken && sameToken(panel) ? chosenToken.index : null);
  if (chosenToken === null || chosenToken.panel.chosen === null) hideCard();
  else showCard(chosenToken.panel, panels, chosenToken.index);
}

function sameToken(panel) {
  return panel.trace.tokens[chosenToken.index] === chosenToken.panel.trace.tokens[chosenToken.index];
}

// -- building --------------------------------------------------------------------------------------------------------

/** Have so many panels; those that stay keep what they hold. */
function havePanels(count) {
  while (panels.length > count) panels.pop().element.remove();
  while (panels.length < count) {
    const panel = new Panel(panels.length, asks);
    panels.push(panel);
    document.getElementById("panels").append(panel.element);
  }
  document.getElementById("panels").className = count === 1 ? "alone" : "";
  repaint();
}

function showRecording(recording) {
  havePanels(recording.traces.length);
  chosenToken = null;
  recording.traces.forEach((events, place) => {
    panels[place].trace.clear();
    for (const event of events) panels[place].feed(event);
    panels[place].follows = false;
    panels[place].text.scrollTop = 0;
    panels[place].text.classList.toggle("code", recording.language === "code");
    panels[place].classes = recording.classes || null;
  });
  timeline.pinned = true;
  document.getElementById("about").textContent = aboutWords(recording.traces.map((events) => events[0]));
  repaint();
}

/** Who read what, of the start events of one text. */
function aboutWords(starts) {
  const [{ model, tokens, layers, heads }] = starts, intervals = [...new Set(starts.map((start) => number(start.interval)))];
  return `${model} read ${number(tokens.length)} tokens. Every ${intervals.join(" or ")} tokens each of its ` +
    `${number(layers.length * heads)} heads decides what to hold on to.`;
}

function openRecordings(recordings) {
  const select = document.getElementById("text");
  select.replaceChildren(...recordings.map((recording, place) => new Option(recording.title, place)));
  select.addEventListener("change", () => {
    timeline.pause();
    showRecording(recordings[+select.value]);
  });
  document.getElementById("pick-text").hidden = recordings.length < 2;
  showRecording(recordings[0]);
  for (const panel of panels) panel.find(".classes").open = panels.length === 1;
  if (document.getElementById("classes")) openClasses();
  const { layers, heads } = recordings[0].traces[0][0], place = layers.indexOf(page.layer);
  if (place >= 0) asks.head(range(heads).map((head) => place * heads + head));
}

function openChat(live) {
  document.getElementById("chat").hidden = false;
  document.body.classList.add("moving");
  for (const button of document.querySelectorAll(".views button")) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.view;
      for (const other of document.querySelectorAll(".views button")) other.setAttribute("aria-pressed", other === button);
      repaint();
    });
  }
  havePanels(1);
  const chat = new Chat(panels, { changed: repaint, compare: (two) => havePanels(two ? 2 : 1) }, live.example);
  chat.load();
}

if (page.live) openChat(page.live);
else openRecordings(page.recordings);
window.addEventListener("resize", repaint);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
document.addEventListener("pointerdown", (event) => {
  if (chosenToken && !event.target.closest(".text")) asks.token(chosenToken.panel, null);
});
