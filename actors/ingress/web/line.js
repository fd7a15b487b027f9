// The WebSocket to the server: it comes back by itself, repeats what was not accepted, and resumes what was.

import { key } from "./api.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5000;
/** A line that is silent this long is dead; the server answers each ping. */
const PING_MS = 20000;

export class Line {
  #socket = null;
  #wait = FIRST_WAIT_MS;
  #heard = 0;
  /** Messages that wait for the server's word that it has them, by their ids. */
  #unaccepted = new Map();
  /** Turns that are being answered: how many bytes of each reply are here. */
  #running = new Map();
  #on;

  /** `on`: `message(message)`, `state(connected)`, `unauthorized()`. */
  constructor(on) {
    this.#on = on;
    setInterval(() => this.#ping(), PING_MS);
    addEventListener("online", () => this.connect());
  }

  connect() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws`);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (key.get()) this.#put({ type: "auth", key: key.get() });
    });
    socket.addEventListener("message", (event) => this.#take(JSON.parse(event.data)));
    socket.addEventListener("close", () => this.#lost(socket));
  }

  /** Connects anew, with a key that was just given. */
  reconnect() {
    this.#socket?.close();
    this.connect();
  }

  /** Sends a message that must be accepted; it is repeated after a loss until it is. */
  ask(message) {
    this.#unaccepted.set(message.id, message);
    this.#put(message);
  }

  /** Watches a turn from byte `after` of its reply on, across losses. */
  watch(turn, session, after = 0) {
    this.#running.set(turn, { session, after });
    this.#put({ type: "resume", turn, session, after });
  }

  stop(session) {
    this.#put({ type: "stop", session });
  }

  #put(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #take(message) {
    this.#heard = Date.now();
    switch (message.type) {
      case "ready":
        this.#wait = FIRST_WAIT_MS;
        this.#on.state(true);
        for (const waiting of this.#unaccepted.values()) this.#put(waiting);
        for (const [turn, { session, after }] of this.#running) this.#put({ type: "resume", turn, session, after });
        break;
      case "accepted":
        if (message.id) this.#unaccepted.delete(message.id);
        if (!this.#running.has(message.turn)) this.#running.set(message.turn, { session: message.session, after: 0 });
        break;
      case "delta":
      case "rewind": {
        const running = this.#running.get(message.turn);
        if (running) running.after = message.seq;
        break;
      }
      case "final":
        this.#running.delete(message.turn);
        break;
      case "error":
        if (message.code === "invalid_api_key") return this.#on.unauthorized();
        if (this.#tryLater(message)) return;
        if (message.id) this.#unaccepted.delete(message.id);
        if (message.turn) this.#running.delete(message.turn);
        break;
    }
    this.#on.message(message);
  }

  /** A message that the server cannot take at the moment is sent again by itself. */
  #tryLater({ id, code, retry_after }) {
    const waiting = this.#unaccepted.get(id);
    if (!waiting || !["draining", "overloaded", "log_unavailable", "session_busy"].includes(code)) return false;
    setTimeout(() => this.#unaccepted.has(id) && this.#put(waiting), (retry_after ?? 1) * 1000);
    return true;
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    this.#on.state(false);
    const wait = this.#wait * (0.5 + Math.random());
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    setTimeout(() => this.connect(), wait);
  }

  #ping() {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    if (Date.now() - this.#heard > 2 * PING_MS) this.#socket.close();
    else this.#put({ type: "ping" });
  }
}
