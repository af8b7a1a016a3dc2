// What the service workers of both apps do: an app opens without a network, and a touched notification opens it. An app's own files alone
// are cached, which are the same for everybody; no answer of /api ever is.

const PATIENCE_MS = 3_000; // of somebody who opens an app on a network that hangs

interface WorkerScope {
  registration: ServiceWorkerRegistration;
  clients: { matchAll(options: object): Promise<{ url: string; focus(): Promise<unknown> }[]>; openWindow(url: string): Promise<unknown>; claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: string, listener: (event: never) => void): void;
}
export interface Lasting {
  waitUntil(work: Promise<unknown>): void;
}

export const worker = globalThis as unknown as WorkerScope;

/** Keeps an app's files in the cache of this version, and deletes the caches of its other versions. A file comes from the network if that
 * answers within some seconds, else from the cache; one of `instant` comes from the cache first. */
export function keepFiles(app: string, version: number, files: string[], instant: string[] = []): void {
  const prefix = `${app}-`;
  const name = `${prefix}${version}`;
  const all = [...files, ...instant];

  worker.addEventListener("install", (event: Lasting) => {
    event.waitUntil(caches.open(name).then((cache) => cache.addAll(all)).then(() => worker.skipWaiting()));
  });

  worker.addEventListener("activate", (event: Lasting) => {
    const old = caches.keys().then((names) => Promise.all(names.filter((each) => each.startsWith(prefix) && each !== name).map((each) => caches.delete(each))));
    event.waitUntil(old.then(() => worker.clients.claim()));
  });

  worker.addEventListener("fetch", (event: Lasting & { request: Request; respondWith(answer: Promise<Response>): void }) => {
    const path = new URL(event.request.url).pathname;
    if (event.request.method !== "GET" || !all.includes(path)) return;
    const renewed = fetch(event.request).then(async (answer) => {
      if (answer.ok) await (await caches.open(name)).put(path, answer.clone());
      return answer;
    });
    event.waitUntil(renewed.catch(() => undefined));
    event.respondWith(
      (async () => {
        const kept = await caches.match(path);
        if (!kept) return renewed;
        const patience = new Promise<Response>((resolve) => setTimeout(() => resolve(kept), instant.includes(path) ? 0 : PATIENCE_MS));
        return Promise.race([renewed.then((answer) => (answer.ok ? answer : kept)).catch(() => kept), patience]);
      })(),
    );
  });
}

/** Shows the app at this path when a notification is touched. */
export function openOnTouch(path: string): void {
  worker.addEventListener("notificationclick", (event: Lasting & { notification: Notification }) => {
    event.notification.close();
    const open = worker.clients.matchAll({ type: "window" }).then((pages) => {
      const page = pages.find((each) => new URL(each.url).pathname === path);
      return page ? page.focus() : worker.clients.openWindow(path);
    });
    event.waitUntil(open);
  });
}
