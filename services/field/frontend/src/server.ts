// Calls to the server. Each has a proof: a signature by the phone's key, without which a copied cookie is worth nothing.

import { keep, proof } from "./kept";

export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly waitS: number,
  ) {
    super(code);
  }
}

const PATIENCE_MS = 40_000; // a request for notices waits for 25 s

export async function call<T>(method: "GET" | "POST", path: string, content?: unknown, stop?: AbortSignal, isFirst = true): Promise<T> {
  const body = content === undefined ? "" : JSON.stringify(content);
  const headers: Record<string, string> = { "X-Proof": await proof(method, path, body) };
  if (method === "POST") headers["Content-Type"] = "application/json";
  const end = new AbortController();
  const patience = setTimeout(() => end.abort(), PATIENCE_MS);
  stop?.addEventListener("abort", () => end.abort());
  if (stop?.aborted) end.abort();
  try {
    const answer = await fetch(path, {
      method,
      headers,
      body: method === "POST" ? body : null,
      cache: "no-store",
      keepalive: path === "/api/health", // it may leave while the screen is being locked
      redirect: "error",
      signal: end.signal,
    });
    if (answer.ok) return (await answer.json()) as T; // one that was cut off is no answer
    const answered = await answer.json().catch(() => ({}));
    // A browser repeats a request by itself where its connection broke: "repeated" says that this one may have been done.
    if (!isFirst || (answered.error !== "clock" && answered.error !== "repeated")) throw new Refused(answer.status, answered.error ?? "http", Number(answer.headers.get("Retry-After") ?? 0));
    if (answered.error === "clock") await keep("clock_ahead_ms", answered.now_ms - Date.now());
  } finally {
    clearTimeout(patience);
  }
  return call(method, path, content, stop, false);
}

/** A notice to this phone. Times are mesh time, milliseconds since 1970 UTC. */
export interface Notice {
  id: string;
  text: string;
  language: string;
  sent_ms: number;
  is_over: boolean;
}

/** The instruction that is valid now. */
export interface Instruction extends Notice {
  who: string;
  where: string;
  act: string;
  since_ms: number;
  repeated_ms: number;
  asks_answer: boolean;
  allows_way_out: boolean; // to go away from him doesn't contradict it
}

export interface Notices {
  present: Instruction | null;
  earlier: Notice[]; // the newest first
  digest: string;
  away: boolean;
  now_ms: number;
}

export const receipt = (notice: string, kind: "delivered" | "displayed" | "answered", choice = 0) =>
  call("POST", "/api/receipts", { notice, kind, choice });
