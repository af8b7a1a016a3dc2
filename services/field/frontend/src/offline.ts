// What the service workers of both apps do: an app opens without a network, and a touched notification opens it. An app's own files alone
// are cached, which are the same for everybody; no answer of /api ever is.

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

/** Keeps an app's files in the cache of this version, and deletes the caches of its other versions. */
export function keepFiles(app: string, version: number, files: string[]): void {
  const prefix = `${app}-`;
  const name = `${prefix}${version}`;

  worker.addEventListener("install", (event: Lasting) => {
    event.waitUntil(caches.open(name).then((cache) => cache.addAll(files)).then(() => worker.skipWaiting()));
  });

  worker.addEventListener("activate", (event: Lasting) => {
    const old = caches.keys().then((names) => Promise.all(names.filter((each) => each.startsWith(prefix) && each !== name).map((each) => caches.delete(each))));
    event.waitUntil(old.then(() => worker.clients.claim()));
  });

  worker.addEventListener("fetch", (event: Lasting & { request: Request; respondWith(answer: Promise<Response>): void }) => {
    const path = new URL(event.request.url).pathname;
    if (event.request.method !== "GET" || !files.includes(path)) return;
    event.respondWith(
      fetch(event.request)
        .then(async (answer) => {
          if (answer.ok) await (await caches.open(name)).put(path, answer.clone());
          return answer;
        })
        .catch(async () => (await caches.match(path)) ?? Response.error()),
    );
  });
}

/** Shows the app at this path when a notification is touched. */
export function openOnTouch(path: string): void {
  worker.addEventListener("notificationclick", (event: Lasting & { notification: Notification }) => {
    event.notification.close();
    const open = worker.clients.matchAll({ type: "window" }).then((pages) => (pages[0] ? pages[0].focus() : worker.clients.openWindow(path)));
    event.waitUntil(open);
  });
}
