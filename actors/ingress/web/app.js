// The chat page: one conversation at a time, its messages, and the list of conversations.
//
//   composer ──turn──▶ Line ──▶ server            accepted, delta …, final ──▶ Conversation ──▶ page
//
// The conversation's id is in the address, so a reload shows it again: its items come from the server, what is being answered is
// watched on, and what was not accepted yet is kept in this browser and sent again.

import * as api from "./api.js";
import { Line } from "./line.js";
import { copyText, render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** The messages of the conversation that is shown, by turn. */
let shown = null;
const line = new Line({ message: onMessage, state: onLine, unauthorized: askForKey });

// ---- conversations -------------------------------------------------------------------------------------------------------------

/** Ids sort newest first, so that the server's listing does; it lists shorter ids first, so all have one length. */
function freshId() {
  const age = (Number.MAX_SAFE_INTEGER - Date.now()).toString(36).padStart(11, "0");
  const random = [...crypto.getRandomValues(new Uint32Array(2))].map((n) => n.toString(36).padStart(7, "0"));
  return `chat-${age}-${random.join("")}`;
}

const idInAddress = () => decodeURIComponent(location.hash.match(/^#\/c\/(.+)$/)?.[1] ?? "");

async function openFromAddress() {
  const id = idInAddress();
  if (!id) return show({ id: freshId(), isNew: true });
  if (shown?.id === id) return;
  try {
    const [conversation, items] = await Promise.all([api.getConversation(id), api.items(id).catch(orNothing)]);
    if (idInAddress() !== id) return;
    show({ id, isNew: !conversation, title: conversation?.metadata?.title });
    items.forEach(addItem);
    for (const response of conversation?.open_responses ?? []) watch(response.replace("resp_", ""));
    for (const message of pending(id)) send(message);
    if (!shown.title && items.length) title(items[0].content[0].text);
    scrollDown(true);
  } catch (error) {
    failed(error);
  }
}

/** A conversation without any record yet has no items. */
function orNothing(error) {
  if (error.status === 404) return [];
  throw error;
}

function show({ id, isNew, title: text }) {
  shown = { id, isNew, title: text, turns: new Map(), byMessage: new Map(), running: new Set() };
  $("messages").replaceChildren(empty());
  $("title").textContent = text || "New chat";
  document.title = text ? `${text} – Parlance` : "Parlance";
  document.body.classList.remove("listing");
  markCurrent();
  refreshComposer();
  $("text").focus();
}

function empty() {
  const element = make("div", "empty");
  element.append(make("h2", "", "What can I do for you?"), make("p", "", "Every accepted message is answered, even if the server restarts."));
  return element;
}

async function listConversations() {
  try {
    const list = await api.conversations();
    $("sessions").replaceChildren(...list.map(entry));
    markCurrent();
  } catch (error) {
    failed(error);
  }
}

function entry({ id, metadata }) {
  const item = make("li");
  item.dataset.id = id;
  const link = make("a", "", metadata?.title || "Untitled chat");
  link.href = `#/c/${encodeURIComponent(id)}`;
  const remove = make("button", "delete", "✕");
  remove.type = "button";
  remove.setAttribute("aria-label", `Delete ${link.textContent}`);
  remove.addEventListener("click", () => removeConversation(id, link.textContent));
  item.append(link, remove);
  return item;
}

async function removeConversation(id, name) {
  if (!confirm(`Delete “${name}” with all its messages?`)) return;
  try {
    await api.deleteConversation(id);
  } catch (error) {
    return failed(error);
  }
  localStorage.removeItem(pendingKey(id));
  if (shown.id === id) location.hash = "#/";
  listConversations();
}

function markCurrent() {
  for (const item of $("sessions").children) item.classList.toggle("current", item.dataset.id === shown?.id);
}

/** Names a conversation after its first message. */
async function title(text) {
  const short = text.trim().split("\n")[0].slice(0, 60);
  shown.title = short;
  $("title").textContent = short;
  document.title = `${short} – Parlance`;
  try {
    await api.setTitle(shown.id, { title: short });
  } catch (error) {
    failed(error);
  }
  listConversations();
}

// ---- messages ------------------------------------------------------------------------------------------------------------------

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function addMessage(role) {
  $("messages").querySelector(".empty")?.remove();
  const element = make("article", `message ${role}`);
  element.append(make("span", "hidden", role === "user" ? "You:" : "Assistant:"), make("div", "body"));
  $("messages").append(element);
  return element;
}

const body = (element) => element.querySelector(".body");

function addItem(item) {
  const turn = item.response_id?.replace("resp_", "");
  const text = item.content[0].text;
  if (item.role === "user") {
    body(addMessage("user")).textContent = text;
  } else if (item.role === "assistant") {
    const reply = replyOf(turn ?? item.id);
    reply.bytes = encoder.encode(item.error ? "" : text);
    finish(reply, { reason: item.finish_reason, error: item.error && text });
  }
}

/** The reply to a turn, made where it is new. `bytes` is its text so far, as the server counts it. */
function replyOf(turn) {
  let reply = shown.turns.get(turn);
  if (!reply) {
    reply = { turn, element: addMessage("assistant"), bytes: new Uint8Array(), drawing: false };
    shown.turns.set(turn, reply);
  }
  return reply;
}

function begin(turn) {
  const reply = replyOf(turn);
  reply.element.classList.add("working");
  shown.running.add(turn);
  refreshComposer();
  return reply;
}

function watch(turn) {
  begin(turn).watched = true;
  line.watch(turn, shown.id);
}

function append(reply, text, end) {
  const more = encoder.encode(text);
  const start = end - more.length;
  const bytes = new Uint8Array(end);
  bytes.set(reply.bytes.subarray(0, start));
  bytes.set(more, start);
  reply.bytes = bytes;
  draw(reply);
}

/** Draws at most once per frame, however fast the text comes. */
function draw(reply) {
  if (reply.drawing) return;
  reply.drawing = true;
  requestAnimationFrame(() => {
    reply.drawing = false;
    const atEnd = isAtEnd();
    render(body(reply.element), decoder.decode(reply.bytes));
    if (atEnd) scrollDown();
  });
}

function finish(reply, { reason, error }) {
  shown.running.delete(reply.turn);
  reply.element.classList.remove("working");
  reply.element.querySelectorAll(".note, .actions").forEach((old) => old.remove());
  render(body(reply.element), decoder.decode(reply.bytes));
  if (error) reply.element.append(make("p", "note bad", error));
  else if (reason === "cancelled") reply.element.append(make("p", "note", "Stopped."));
  else if (reason === "length") reply.element.append(make("p", "note", "Cut at the length limit."));
  addActions(reply);
  refreshComposer();
}

/** Copying is for every reply, another try only for the last. */
function addActions(reply) {
  $("messages").querySelectorAll(".regenerate").forEach((old) => old.remove());
  const actions = make("div", "actions");
  const copy = make("button", "", "Copy");
  copy.type = "button";
  copy.addEventListener("click", () => copyText(decoder.decode(reply.bytes), copy));
  const again = make("button", "regenerate", "Regenerate");
  again.type = "button";
  again.addEventListener("click", () => regenerate(reply));
  actions.append(copy, again);
  reply.element.append(actions);
}

function regenerate(reply) {
  if (shown.running.size) return;
  reply.element.remove();
  shown.turns.delete(reply.turn);
  const id = messageId();
  shown.byMessage.set(id, { regenerates: reply.turn });
  line.ask({ type: "regenerate", id, session: shown.id, turn: reply.turn, ...chosenModel() });
}

const messageId = () => `m-${crypto.randomUUID()}`;
const chosenModel = () => ($("model").value ? { model: $("model").value } : {});

// ---- sending -------------------------------------------------------------------------------------------------------------------

const pendingKey = (id) => `parlance.pending.${id}`;
const pending = (id) => JSON.parse(localStorage.getItem(pendingKey(id)) ?? "[]");

function setPending(id, messages) {
  if (messages.length) localStorage.setItem(pendingKey(id), JSON.stringify(messages));
  else localStorage.removeItem(pendingKey(id));
}

function submit(event) {
  event?.preventDefault();
  const text = $("text").value;
  if (!text.trim()) return;
  $("text").value = "";
  grow();
  if (shown.isNew) {
    shown.isNew = false;
    history.replaceState(null, "", `#/c/${encodeURIComponent(shown.id)}`);
  }
  const message = { id: messageId(), text };
  setPending(shown.id, [...pending(shown.id), message]);
  send(message);
  scrollDown(true);
}

function send({ id, text }) {
  const element = addMessage("user");
  element.classList.add("waiting");
  body(element).textContent = text;
  shown.byMessage.set(id, { element, text });
  line.ask({ type: "turn", id, session: shown.id, text, ...chosenModel() });
}

function onMessage(message) {
  if (!shown) return;
  if (message.type === "accepted") return onAccepted(message);
  if (message.type === "error") return onError(message);
  const reply = shown.turns.get(message.turn);
  if (!reply) return;
  if (message.type === "delta") append(reply, message.text, message.seq);
  if (message.type === "rewind") {
    reply.bytes = reply.bytes.slice(0, message.seq);
    draw(reply);
  }
  if (message.type !== "final") return;
  finish(reply, { reason: message.finish_reason });
  // A turn that was found running may have replaced an earlier reply: the record knows.
  if (reply.watched && !shown.running.size) {
    shown.id = null;
    openFromAddress();
  }
}

function onAccepted({ turn, session, id }) {
  if (id) setPending(session, pending(session).filter((message) => message.id !== id));
  if (session !== shown.id) return;
  const sent = shown.byMessage.get(id);
  shown.byMessage.delete(id);
  sent?.element?.classList.remove("waiting");
  begin(turn);
  if (sent?.text && !shown.title) title(sent.text);
}

function onError({ message, turn, id, session }) {
  const sent = shown.byMessage.get(id);
  if (id) setPending(session ?? shown.id, pending(session ?? shown.id).filter((waiting) => waiting.id !== id));
  if (sent?.element) {
    shown.byMessage.delete(id);
    sent.element.append(make("p", "note bad", `Not sent: ${message}`));
  } else if (turn && shown.turns.has(turn)) {
    finish(shown.turns.get(turn), { error: message });
  } else {
    notice(message);
  }
}

// ---- the frame -----------------------------------------------------------------------------------------------------------------

let wasLost = false;

function onLine(connected) {
  if (connected && wasLost) notice("");
  if (!connected) {
    wasLost = true;
    notice("Connection lost. Trying again …");
  }
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function failed(error) {
  if (error.status === 401) askForKey();
  else notice(error.message);
}

function askForKey() {
  if ($("key-dialog").open) return;
  $("key").value = "";
  $("key-dialog").showModal();
}

$("key-dialog").addEventListener("close", () => {
  if (!$("key").value) return;
  api.key.set($("key").value.trim());
  line.reconnect();
  start();
});

function isAtEnd() {
  const list = $("messages");
  return list.scrollHeight - list.scrollTop - list.clientHeight < 80;
}

function scrollDown(always = false) {
  if (always || isAtEnd()) requestAnimationFrame(() => ($("messages").scrollTop = $("messages").scrollHeight));
  else $("messages").scrollTop = $("messages").scrollHeight;
}

function refreshComposer() {
  const working = Boolean(shown?.running.size);
  $("stop").hidden = !working;
  $("send").hidden = working;
  $("send").disabled = !$("text").value.trim();
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
  refreshComposer();
}

async function listModels() {
  try {
    const names = await api.models();
    $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  } catch (error) {
    failed(error);
  }
}

async function start() {
  await Promise.all([listModels(), listConversations(), openFromAddress()]);
}

$("composer").addEventListener("submit", submit);
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!$("send").hidden) submit();
  }
});
$("stop").addEventListener("click", () => line.stop(shown.id));
$("new-chat").addEventListener("click", () => {
  location.hash = "#/";
  show({ id: freshId(), isNew: true });
});
$("open-sidebar").addEventListener("click", () => document.body.classList.add("listing"));
$("close-sidebar").addEventListener("click", () => document.body.classList.remove("listing"));
$("shade").addEventListener("click", () => document.body.classList.remove("listing"));
addEventListener("hashchange", openFromAddress);
addEventListener("keydown", (event) => event.key === "Escape" && document.body.classList.remove("listing"));

line.connect();
start();
