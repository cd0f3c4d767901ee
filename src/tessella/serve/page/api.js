/** The server's HTTP interface as functions. `local.js` has the same functions for a page without a server. */

import { messageFor } from "./text.js";

const TOKEN = "tessella-token";
const TRIES = 4; // of a request that the server is too busy for
const LONGEST_WAIT = 10; // seconds; a server that asks for a longer one has its error shown

/** A request failed. `code` is the server's error code; the message is for people. */
export class ServerError extends Error {
  constructor(code, status = 0, detail = "") {
    super(messageFor(code, detail));
    this.code = code;
    this.status = status;
    this.detail = detail; // one sentence of the server, or ""
  }
}

const CODES_OF_STATUS = {
  401: "unauthorized",
  404: "not_found",
  413: "body_too_large",
  429: "overloaded",
  503: "not_ready",
  504: "deadline_exceeded",
};

export class ServerBackend {
  can = { classify: true, explain: true, teach: true, requests: true, enlarge: true };

  /** askToken(rejected): resolves to a token, or to null if the person cancels. */
  constructor(askToken) {
    this.askToken = askToken;
    this.asking = null;
    this.canceled = -Infinity; // when a person last gave no token
    this.isRefused = false; // whether a request has failed for want of a token since one was last accepted
    this.onaccess = null; // called when a token is accepted after requests have failed without it
  }

  models() {
    return this.#call("GET", "/v1/models");
  }

  /** The facts of the index, or null if the server has none. */
  async index() {
    try {
      const { answer } = await this.#call("GET", "/v1/index");
      this.gaps = answer.listed - answer.rows;
      return answer;
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  classify(file, { model, top = 5, signal, onwait }) {
    const fields = { top: String(top), ...(model ? { model } : {}) };
    return this.#call("POST", "/v1/classify", { files: [{ field: "file", file }], fields, signal, onwait });
  }

  /** wanted, versus: classes by name or as `index:3`; "" for the most probable one and for none. */
  explain(file, { model, wanted, versus, method, signal, onwait }) {
    const given = Object.entries({ model, class: wanted, versus, method }).filter(([, value]) => value);
    const fields = Object.fromEntries(given);
    return this.#call("POST", "/v1/explain", { files: [{ field: "file", file }], fields, signal, onwait });
  }

  /** options: the JSON of a search. file: an image to search by, instead of the rows in `options.queries`. */
  search(options, { file = null, signal } = {}) {
    if (!file) return this.#call("POST", "/v1/search", { json: options, signal });
    const fields = { options: JSON.stringify(options) };
    return this.#call("POST", "/v1/search", { files: [{ field: "file", file }], fields, signal });
  }

  select(filter, start, count, { signal } = {}) {
    return this.#call("POST", "/v1/index/select", { json: { filter, start, count }, signal });
  }

  /** One image by its row, a place in the listing of the run; inputs that could not be read are not in the index. */
  async row(row) {
    let [low, high] = [Math.max(row - this.gaps, 0), row]; // positions in the index
    while (low <= high) {
      const middle = (low + high) >> 1;
      const { answer } = await this.#call("GET", `/v1/index/rows?start=${middle}&count=1`);
      const [item] = answer.rows;
      if (item?.row === row) return item;
      if (!item || item.row > row) high = middle - 1;
      else low = middle + 1;
    }
    throw new ServerError("not_found", 404);
  }

  /** Places on the map by row, x and y in turn; NaN for a row that is not in the index. */
  async map() {
    return new Float32Array(await this.#bytes("/v1/index/map"));
  }

  /** The class of each row as its place in the list of classes; 65535 for none. */
  async labels() {
    return new Uint16Array(await this.#bytes("/v1/index/labels.bin"));
  }

  /** The address of a thumbnail for an <img>; the caller keeps it. */
  async thumbnail(row, size) {
    const response = await this.#fetch("GET", `/v1/index/image/${row}?size=${size}`, { asks: false });
    return URL.createObjectURL(await response.blob());
  }

  async exportRows(body) {
    const response = await this.#fetch("POST", "/v1/index/export", { json: body });
    return response.blob();
  }

  teach(yes, no, top, { signal } = {}) {
    return this.#call("POST", "/v1/teach", { json: { yes, no, top }, signal });
  }

  /** The names of the saved heads. This is asked for in the background, so it never asks for the token. */
  async heads() {
    const response = await this.#fetch("GET", "/v1/heads", { asks: false });
    const { heads } = await response.json();
    return heads.map(({ name }) => name);
  }

  saveHead(name, yes, no, replace) {
    return this.#call("POST", "/v1/heads", { json: { name, yes, no, ...(replace ? { replace } : {}) } });
  }

  async #bytes(path) {
    return (await this.#fetch("GET", path, {})).arrayBuffer();
  }

  /** Send a request; return its JSON answer and the request as data, for "copy as curl". */
  async #call(method, path, options = {}) {
    const begun = performance.now();
    const response = await this.#fetch(method, path, options);
    const answer = await response.json();
    const request = {
      method,
      url: new URL(path, location.origin).href,
      token: sessionStorage.getItem(TOKEN) !== null,
      json: options.json,
      fields: options.fields,
      files: options.files?.map(({ field, file }) => ({ field, name: file.name })),
      answer,
      elapsed: performance.now() - begun,
    };
    return { answer, request };
  }

  /** onwait(seconds): called before a busy server is asked again. asks: whether to ask a person for the token. */
  async #fetch(method, path, { json, files, fields, signal, onwait, asks = true }) {
    const begun = performance.now();
    for (let attempt = 1; ; attempt++) {
      const headers = new Headers();
      const token = sessionStorage.getItem(TOKEN);
      if (token !== null) headers.set("Authorization", `Bearer ${token}`);
      let body = null;
      if (json) {
        headers.set("Content-Type", "application/json");
        body = JSON.stringify(json);
      } else if (files) {
        body = new FormData();
        for (const { field, file } of files) body.append(field, file, file.name);
        for (const [field, value] of Object.entries(fields)) body.append(field, value);
      }
      let response;
      try {
        response = await fetch(path, { method, headers, body, signal, credentials: "omit", redirect: "error" });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("server_unavailable");
      }
      if (response.ok) {
        this.#accepted();
        return response;
      }
      if (response.status === 401 && !asks && sessionStorage.getItem(TOKEN) === token) this.isRefused = true;
      else if (response.status === 401) {
        await this.#renewToken(token, begun);
        attempt = 0;
        continue;
      }
      const wait = Number(response.headers.get("Retry-After") ?? NaN);
      const isBusy = response.status === 429 || response.status === 503;
      if (!isBusy || attempt >= TRIES || !(wait <= LONGEST_WAIT)) throw await errorOf(response);
      onwait?.(wait);
      await pause(wait, signal);
    }
  }

  /**
   * Ask for a token once, however many requests were refused. Raise if the person cancels, and also for the other
   * requests that had begun by then.
   */
  async #renewToken(refused, begun) {
    if (sessionStorage.getItem(TOKEN) !== refused) return; // another request has asked already
    if (begun < this.canceled) throw this.#refused();
    this.asking ??= this.askToken(refused !== null).finally(() => (this.asking = null));
    const token = await this.asking;
    if (token === null) {
      this.canceled = performance.now();
      throw this.#refused();
    }
    sessionStorage.setItem(TOKEN, token);
  }

  #refused() {
    this.isRefused = true;
    return new ServerError("unauthorized", 401);
  }

  /** A request was answered: if others have failed for want of a token, they can be repeated now. */
  #accepted() {
    if (!this.isRefused) return;
    this.isRefused = false;
    this.onaccess?.();
  }
}

async function errorOf(response) {
  const problem = await response.json().catch(() => ({}));
  const code = problem.code ?? CODES_OF_STATUS[response.status] ?? "internal_error";
  const detail = problem.detail === problem.title ? "" : problem.detail; // the title is the text of the code
  return new ServerError(code, response.status, detail);
}

/** Wait some seconds; a little longer by chance, so that waiting pages do not all return at once. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds * (1 + 0.2 * Math.random()));
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
