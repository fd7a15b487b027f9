// The calls of the page to its own server.

const KEY = "parlance.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** What the server answered instead of what was asked for. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = body?.error?.code;
  }
}

async function call(method, path, body) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, answer);
  return answer;
}

const conversation = (id) => `/v1/conversations/${encodeURIComponent(id)}`;

/** The names of the models that one can talk to. */
export async function models() {
  const { data } = await call("GET", "/v1/models");
  return data.filter((model) => model.kind !== "embedding").map((model) => model.id);
}

/** The newest conversations first: their ids are made so. */
export async function conversations() {
  return (await call("GET", "/v1/conversations?limit=100")).data;
}

/** A conversation, or `null` if there is none yet. */
export async function getConversation(id) {
  try {
    return await call("GET", conversation(id));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

export const setTitle = (id, metadata) => call("POST", conversation(id), { metadata });
export const deleteConversation = (id) => call("DELETE", conversation(id));

/** All items of a conversation, oldest first; the last 1,000 of a longer one. */
export async function items(id) {
  const all = [];
  let after = "";
  for (let page = 0; page < 10; page += 1) {
    const answer = await call("GET", `${conversation(id)}/items?order=desc&limit=100${after}`);
    all.push(...answer.data);
    if (!answer.has_more) break;
    after = `&after=${encodeURIComponent(answer.last_id)}`;
  }
  return all.reverse();
}
