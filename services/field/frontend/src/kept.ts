// What the app keeps on the phone (IndexedDB): the phone's key, the reports that wait, settings, and when the server last confirmed whether
// there is an instruction. No name, and no text of a notice.

// A phone may have both pages, of one origin: each has its own key and its own settings.
const NAME = self.location.pathname.startsWith("/unit/") ? "unit" : "app";
const STORES = ["settings", "reports"] as const;
type Store = (typeof STORES)[number];

export interface KeptReport {
  id: string;
  at_ms: number;
  alarm?: "panic" | "battery_low" | "battery_charging";
  silent?: true; // a panic after which nothing may be seen or heard on this phone
  lat?: number;
  lon?: number;
  accuracy?: number;
  battery?: number; // charge, percent
}

// An hour at one report every 5 s and a day at one every 2 min: the oldest positions give way, a panic never does.
export const MAX_REPORTS = 720;

let opening: Promise<IDBDatabase> | undefined;

function opened(): Promise<IDBDatabase> {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("settings");
      request.result.createObjectStore("reports", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function run<T>(store: Store, mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const database = await opened();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode, { durability: "strict" });
    const request = act(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

export const setting = <T>(name: string): Promise<T | undefined> => run("settings", "readonly", (store) => store.get(name));
export const keep = (name: string, value: unknown) => run("settings", "readwrite", (store) => store.put(value, name));
export const forgetReport = (id: string) => run("reports", "readwrite", (store) => store.delete(id));

// The reports that wait: panics first, then the newest, which says where she is now.
export async function waitingReports(): Promise<KeptReport[]> {
  const reports = await run<KeptReport[]>("reports", "readonly", (store) => store.getAll());
  return reports.sort((a, b) => Number(b.alarm === "panic") - Number(a.alarm === "panic") || b.at_ms - a.at_ms);
}

export const isWaiting = async (id: string): Promise<boolean> => (await run("reports", "readonly", (store) => store.getKey(id))) !== undefined;

export async function keepReport(report: KeptReport): Promise<void> {
  await run("reports", "readwrite", (store) => store.put(report));
  const waiting = await waitingReports();
  for (const old of waiting.slice(MAX_REPORTS)) if (!old.alarm) await forgetReport(old.id);
}

export async function forgetAll(): Promise<void> {
  await run("reports", "readwrite", (store) => store.clear());
  await run("settings", "readwrite", (store) => store.clear());
}

// ---- the phone's key: its private part can't be read, not even by the app

const CURVE = { name: "ECDSA", namedCurve: "P-256" };

export async function newKey(): Promise<string> {
  const pair = await crypto.subtle.generateKey(CURVE, false, ["sign", "verify"]);
  await keep("key", pair);
  return base64url(await crypto.subtle.exportKey("raw", pair.publicKey));
}

/** Returns the proof of a request. Its nonce is good once: each try of a request needs a proof of its own. */
export async function proof(method: string, path: string, body = ""): Promise<string> {
  const atMs = Date.now() + ((await setting<number>("clock_ahead_ms")) ?? 0);
  const nonce = base64url(crypto.getRandomValues(new Uint8Array(16)).buffer);
  return `${atMs}.${nonce}.${await signed(`${method}\n${path}\n${atMs}\n${nonce}\n${await sha256(body)}`)}`;
}

async function signed(text: string): Promise<string> {
  const pair = await setting<CryptoKeyPair>("key");
  if (!pair) return "";
  const hashed = { name: "ECDSA", hash: "SHA-256" };
  return base64url(await crypto.subtle.sign(hashed, pair.privateKey, new TextEncoder().encode(text)));
}

async function sha256(text: string): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function base64url(bytes: ArrayBuffer): string {
  const text = Array.from(new Uint8Array(bytes), (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
