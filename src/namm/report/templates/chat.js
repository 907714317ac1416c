// The chat of the live page: the same message goes to every memory, each of which has a conversation of its own.

const LONG_PASTE = 1500; // characters; a longer paste becomes an attachment

class Chat {
  /**
   * @param panels the panels on the page, the array itself: 1 or 2 of them.
   * @param asks compare(whether there are two), changed() when events came.
   */
  constructor(panels, asks, example) {
    this.panels = panels;
    this.asks = asks;
    this.example = example;
    this.models = []; // as the server lists them
    this.attached = []; // {name, text}
    this.running = null; // AbortController of the answers on their way
    this.log = document.getElementById("log");
    this.message = document.getElementById("message");
    this.empty = document.getElementById("empty");
    this.listen();
  }

  listen() {
    const on = (id, kind, act) => document.getElementById(id).addEventListener(kind, act);
    on("composer", "submit", (event) => (event.preventDefault(), this.send()));
    on("message", "keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    on("message", "input", () => this.grow());
    on("message", "paste", (event) => this.paste(event));
    on("file", "change", (event) => this.attachFiles(event.target));
    on("attach", "keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") (event.preventDefault(), document.getElementById("file").click());
    });
    on("stop", "click", () => this.running?.abort());
    on("fresh", "click", () => this.startAnew());
    on("left", "change", (event) => this.assign(0, event.target.value));
    on("right", "change", (event) => this.chooseSecond(event.target.value));
    on("example", "click", () => {
      this.attached = [{ name: this.example.title || "a chapter", text: this.example.text }];
      this.message.value = this.example.question;
      this.showAttached();
      document.getElementById("send").focus();
    });
    document.getElementById("example").hidden = !this.example;
  }

  // -- which memories ------------------------------------------------------------------------------------------------

  async load() {
    try {
      this.models = (await (await this.request("v1/models")).json()).data;
    } catch (error) {
      this.complain(this.log, error);
      return;
    }
    const options = () => this.models.map((model) => new Option(this.nameOf(model), model.id));
    document.getElementById("left").replaceChildren(...options());
    document.getElementById("right").replaceChildren(new Option("nothing", ""), ...options());
    document.getElementById("right").disabled = this.models.length < 2;
    this.assign(0, this.models[0].id);
  }

  /** The name of its memory, with its rule where another model has the same memory. */
  nameOf(model) {
    const memory = model.namm?.memory;
    const alone = this.models.filter((other) => other.namm?.memory === memory).length === 1;
    return !memory ? model.id : alone ? memory : `${memory}, ${model.namm.rule}`;
  }

  /** Panel `place` shows model `id` from now on; what was said so far is read anew with the next message. */
  assign(place, id) {
    this.running?.abort();
    const panel = this.panels[place], model = this.models.find((one) => one.id === id);
    panel.trace.clear();
    panel.model = id;
    panel.planned = model.namm || { memory: id, rule: "" };
    panel.messages ??= [];
    this.asks.changed();
  }

  chooseSecond(id) {
    this.asks.compare(id !== "");
    if (id === "") return;
    this.panels[1].messages ??= this.panels[0].messages.slice();
    this.assign(1, id);
  }

  startAnew() {
    this.running?.abort();
    for (const panel of this.panels) {
      panel.trace.clear();
      panel.messages = [];
    }
    this.log.replaceChildren(this.empty);
    this.asks.changed();
    this.message.focus();
  }

  // -- what is asked -------------------------------------------------------------------------------------------------

  grow() {
    this.message.style.height = "auto";
    this.message.style.height = `${this.message.scrollHeight + 2}px`;
  }

  paste(event) {
    const text = event.clipboardData.getData("text");
    if (text.length <= LONG_PASTE) return;
    event.preventDefault();
    this.attached.push({ name: "pasted text", text });
    this.showAttached();
  }

  async attachFiles(input) {
    for (const file of input.files) this.attached.push({ name: file.name, text: await file.text() });
    input.value = "";
    this.showAttached();
  }

  showAttached() {
    const box = document.getElementById("attached");
    box.hidden = this.attached.length === 0;
    box.replaceChildren(...this.attached.map((one) => {
      const chip = element("span", "chip"), away = element("button", "", "×");
      away.type = "button";
      away.setAttribute("aria-label", `Take ${one.name} away`);
      away.addEventListener("click", () => {
        this.attached = this.attached.filter((other) => other !== one);
        this.showAttached();
      });
      chip.append(element("span", "", `${one.name}, ${number(one.text.length)} characters`), away);
      return chip;
    }));
    this.grow();
  }

  async send() {
    const draft = { attached: this.attached, question: this.message.value };
    const content = [...draft.attached.map((one) => one.text), draft.question].filter((part) => part.trim()).join("\n\n");
    if (this.running || !content || !this.models.length) return;
    this.attached = [];
    this.message.value = "";
    this.showAttached();
    const turn = element("div", "turn");
    turn.append(askedBox(draft));
    if (this.empty.isConnected) this.log.replaceChildren();
    this.log.append(turn);
    this.running = new AbortController();
    this.showRunning();
    const signal = this.running.signal;
    const fine = await Promise.all(this.panels.map((panel) => this.answer(panel, turn, content, signal)));
    this.running = null;
    this.showRunning();
    if (!fine.some(Boolean) && !this.message.value && !this.attached.length) {
      this.attached = draft.attached; // nothing came of it: to be sent again
      this.message.value = draft.question;
      this.showAttached();
    }
    this.message.focus();
  }

  showRunning() {
    document.getElementById("stop").hidden = this.running === null;
    document.getElementById("send").hidden = this.running !== null;
  }

  // -- what is answered ----------------------------------------------------------------------------------------------

  /** One memory's answer. Returns whether anything came. */
  async answer(panel, turn, content, signal) {
    const box = element("div", "answer working");
    if (this.panels.length > 1) box.append(element("h3", "", panel.planned.memory));
    const said = element("div", "said"), status = element("p", "status", "waiting");
    box.append(said, status);
    turn.append(box);
    this.keepInSight();
    panel.messages.push({ role: "user", content });
    let text = "";
    const take = (chunk) => {
      if (chunk.error) throw new Error(chunk.error.message || "the server gave no reason");
      if (chunk.namm?.event) {
        panel.feed(chunk.namm.event);
        this.asks.changed();
      }
      text += chunk.choices?.[0]?.delta?.content || "";
      said.textContent = text;
      status.textContent = chunk.usage ? usageWords(chunk.usage) : progressWords(panel.trace, text);
      this.keepInSight();
    };
    try {
      const reply = await this.request("v1/chat/completions", this.body(panel), signal);
      for await (const data of serverEvents(reply.body)) if (data !== "[DONE]") take(JSON.parse(data));
    } catch (error) {
      if (signal.aborted) status.textContent += ", stopped";
      else this.complain(box, error);
    }
    box.classList.remove("working");
    if (text) panel.messages.push({ role: "assistant", content: text });
    else panel.messages.pop();
    return text !== "";
  }

  body(panel) {
    return {
      model: panel.model, messages: panel.messages, stream: true, stream_options: { include_usage: true },
      max_tokens: +document.getElementById("longest").value || 128,
      temperature: +document.getElementById("temperature").value || 0, namm: { watch: true },
    };
  }

  keepInSight() {
    const log = this.log;
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
  }

  complain(box, error) {
    const message = error instanceof TypeError ? "The server cannot be reached. Is it still running?" : error.message;
    const said = element("p", "error", message);
    said.setAttribute("role", "alert");
    box.append(said);
    this.keepInSight();
  }

  // -- the server ----------------------------------------------------------------------------------------------------

  /** A reply that is fine; asks for a key where the server does. Throws an Error with the server's own message. */
  async request(path, body, signal) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    const key = storedKey();
    if (key) headers.Authorization = `Bearer ${key}`;
    const reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (reply.ok) return reply;
    if (reply.status === 401 && (await askKey(key !== ""))) return this.request(path, body, signal);
    const said = await reply.json().catch(() => ({}));
    throw new Error(said.error?.message || `The server answered with status ${reply.status}.`);
  }
}

function askedBox({ attached, question }) {
  const box = element("div", "asked"), long = question.length > LONG_PASTE;
  for (const one of long ? [...attached, { name: "message", text: question }] : attached) {
    const more = element("details");
    more.append(element("summary", "", `${one.name}, ${number(one.text.length)} characters`), element("div", "", one.text));
    box.append(more);
  }
  if (!long) box.append(question);
  return box;
}

function progressWords(trace, text) {
  const all = trace.tokens.length, now = trace.bytesAt(Infinity);
  if (!all) return "waiting";
  const held = now ? `, holds ${bytesOf(now.held, now.full)}` : "";
  return (text ? "answering" : `reading, ${number(trace.seen)} of ${number(all)} tokens`) + held;
}

function usageWords(usage) {
  const cached = usage.prompt_tokens_details?.cached_tokens || 0, held = usage.namm;
  const parts = [`${number(usage.prompt_tokens || 0)} tokens read`];
  if (cached) parts[0] += `, ${number(cached)} of them before`;
  if (held) parts.push(`holds ${percent(held.bytes_held / held.bytes_full)} of a full cache, ` +
    bytesOf(held.bytes_held, held.bytes_full));
  return parts.join("; ");
}

/** The data of each server-sent event of a body. */
async function* serverEvents(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function storedKey() {
  return sessionStorage.getItem("namm-key") || "";
}

let asking = null; // the open question for a key, shared by all requests that wait for it

/** Ask for an API key. Resolves to whether one was given. */
function askKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key"), field = document.getElementById("key-value");
    if (wrong) document.getElementById("key-note").textContent = "The key was not accepted. Try another.";
    field.value = "";
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" && field.value !== "";
      if (given) sessionStorage.setItem("namm-key", field.value);
      asking = null;
      resolve(given);
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}
