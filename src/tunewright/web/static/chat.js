"use strict";
// A chat is built from the stream of its events alone, so that a stream that broke off loses nothing.
(() => {
  const { ask, say } = window.tunewright;
  const at = (id) => document.getElementById(id);
  const root = at("chat");
  const NAMES = { base: "Base", tuned: "Tuned" };
  const WORDS = { waiting: "waiting", loading: "loading the model …", answering: "answering …", ready: "", failed: "", closed: "closed" };
  const HINTS = {
    open: "Each model goes on in its own conversation.",
    blind: "Whose answer is whose is drawn anew for each question, and said after the vote. Each question stands alone.",
  };
  let chat = null;
  let source = null;
  let shown = new Map();

  const isBlind = () => document.querySelector("[name=kind]:checked").value === "blind";

  function element(name, text = "", css = "") {
    const made = document.createElement(name);
    made.textContent = text;
    if (css) made.className = css;
    return made;
  }

  function answerBox(title) {
    const box = element("section", "", "answer");
    const head = element("h3", title);
    const text = element("p", "", "said");
    text.setAttribute("aria-live", "off");
    box.append(head, text);
    return { box, head, text };
  }

  function addQuestion({ number, text }) {
    const row = element("li");
    const left = answerBox(chat.blind ? "First answer" : NAMES.base);
    const right = answerBox(chat.blind ? "Second answer" : NAMES.tuned);
    const pair = element("div", "", "pair");
    const verdict = element("div", "", "verdict-row");
    verdict.setAttribute("role", "status");
    pair.append(left.box, right.box);
    row.append(element("p", text, "asked"), pair, verdict);
    at("exchanges").append(row);
    shown.set(number, { left, right, verdict });
    row.scrollIntoView({ block: "nearest" });
  }

  function voteButtons(number) {
    const group = element("div", "", "actions");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Which answer is better?");
    const choices = [["left", "First is better", "1"], ["right", "Second is better", "2"], ["tie", "Neither", "0"]];
    for (const [vote, words, key] of choices) {
      const button = element("button", words);
      button.type = "button";
      button.dataset.key = key;
      button.setAttribute("aria-keyshortcuts", key);
      button.append(" ", element("kbd", key));
      button.addEventListener("click", () => send(number, vote, group));
      group.append(button);
    }
    return group;
  }

  async function send(number, vote, group) {
    group.querySelectorAll("button").forEach((button) => { button.disabled = true; });
    try {
      await ask("POST", `/api/v1/chats/${chat.id}/votes`, { question: number, vote });
      document.body.dispatchEvent(new CustomEvent("changed"));
      at("question").focus();
    } catch (error) {
      say(error.message);
      group.querySelectorAll("button").forEach((button) => { button.disabled = false; });
    }
  }

  function reveal({ number, left, right, vote }) {
    const row = shown.get(number);
    row.left.head.textContent = NAMES[left];
    row.right.head.textContent = NAMES[right];
    if (!vote) return;
    row.verdict.replaceChildren(element("p", vote === "tie" ? "A tie." : `You found ${NAMES[vote].toLowerCase()} better.`, "soft"));
    const winner = vote === left ? row.left : vote === right ? row.right : null;
    if (winner) winner.box.classList.add("won");
  }

  function takeState({ state, problem }) {
    chat.state = state;
    at("state").textContent = WORDS[state];
    at("send").disabled = !["ready"].includes(state);
    at("stop").hidden = state !== "answering";
    if (state === "failed") say(`${problem} Begin anew when it is mended.`);
    if (state === "failed" || state === "closed") source.close();
  }

  const TAKE = {
    state: takeState,
    question: addQuestion,
    pieces({ number, left, right }) {
      const row = shown.get(number);
      row.left.text.append(left);
      row.right.text.append(right);
    },
    answered({ number }) {
      const row = shown.get(number);
      for (const side of [row.left, row.right]) if (!side.text.textContent.trim()) side.text.append(element("i", "(nothing)"));
      if (!chat.blind) return;
      const buttons = voteButtons(number);
      row.verdict.append(buttons);
      if (document.activeElement === document.body || document.activeElement === at("send")) buttons.firstChild.focus();
    },
    sides: reveal,
  };

  function listen() {
    source = new EventSource(`/api/v1/chats/${chat.id}/events`);
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      TAKE[event.kind](event);
    };
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      chat = null;
      at("send").disabled = false;
      at("state").textContent = "The service was started anew; so is the chat.";
    };
  }

  async function begin() {
    chat = await ask("POST", `/api/v1/runs/${encodeURIComponent(root.dataset.run)}/chats`, { blind: isBlind() });
    shown = new Map();
    at("exchanges").replaceChildren();
    at("send").disabled = true;
    listen();
  }

  function leave() {
    if (!chat) return;
    source.close();
    ask("DELETE", `/api/v1/chats/${chat.id}`).catch(() => {});
    chat = null;
  }

  async function anew() {
    leave();
    at("exchanges").replaceChildren();
    at("state").textContent = "";
    at("send").disabled = true;
    at("stop").hidden = true;
    at("kind-hint").textContent = HINTS[isBlind() ? "blind" : "open"];
    say("");
    try {
      await begin();
    } catch (error) {
      say(error.message);
      at("send").disabled = false;
    }
    at("question").focus();
  }

  async function put(event) {
    event.preventDefault();
    const text = at("question").value.trim();
    if (!text || at("send").disabled) return;
    if (!chat) {
      await anew();
      return;
    }
    try {
      at("send").disabled = true;
      await ask("POST", `/api/v1/chats/${chat.id}/questions`, { text });
      at("question").value = "";
      say("");
    } catch (error) {
      say(error.message);
      at("send").disabled = false;
    }
  }

  at("ask").addEventListener("submit", put);
  at("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("ask").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("textarea, input, select")) return;
    const buttons = [...document.querySelectorAll(`.verdict-row button[data-key="${CSS.escape(event.key)}"]:enabled`)];
    if (buttons.length) buttons[buttons.length - 1].click();
  });
  at("stop").addEventListener("click", () => ask("POST", `/api/v1/chats/${chat.id}/stop`, {}).catch((error) => say(error.message)));
  at("anew").addEventListener("click", anew);
  document.querySelectorAll("[name=kind]").forEach((one) => one.addEventListener("change", anew));
  window.addEventListener("pagehide", () => {
    if (chat) fetch(`/api/v1/chats/${chat.id}`, { method: "DELETE", keepalive: true });
  });
  anew();
})();
