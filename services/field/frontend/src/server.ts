// Calls to the server. Each has a proof: a signature by the phone's key, without which a copied cookie is worth nothing.

import { keep, setting, sha256, signed } from "./kept";

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

export async function call<T>(method: "GET" | "POST", path: string, content?: unknown, isFirst = true): Promise<T> {
  const body = content === undefined ? "" : JSON.stringify(content);
  const atMs = Date.now() + ((await setting<number>("clock_ahead_ms")) ?? 0);
  const proof = `${atMs}.${await signed(`${method}\n${path}\n${atMs}\n${await sha256(body)}`)}`;
  const headers: Record<string, string> = { "X-Proof": proof };
  if (method === "POST") headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method,
    headers,
    body: method === "POST" ? body : null,
    cache: "no-store",
    keepalive: path === "/api/health", // it may leave while the screen is being locked
    redirect: "error",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const answered = await answer.json().catch(() => ({}));
  if (answer.ok) return answered as T;
  if (answered.error === "clock" && isFirst) {
    await keep("clock_ahead_ms", answered.now_ms - Date.now());
    return call(method, path, content, false);
  }
  throw new Refused(answer.status, answered.error ?? "http", Number(answer.headers.get("Retry-After") ?? 0));
}

export interface Notice {
  id: string;
  text: string;
  language: string;
  sent_ms: number;
  expires_ms: number;
  is_over: boolean;
}

export interface Notices {
  notices: Notice[];
  digest: string;
  away: boolean;
}

export const receipt = (notice: string, kind: "delivered" | "displayed" | "answered", choice = 0) =>
  call("POST", "/api/receipts", { notice, kind, choice });
