// Server-sent events: connects once more after a connection that ended, and says when the session is over. No DOM: the worker that the
// pages share uses it as well.

const RECONNECT_MS = 3_000;

export interface Listener {
  /** A message came. `atMs` is when, by this computer's clock. */
  heard(data: string, atMs: number): void;
  /** The connection was opened or lost. */
  changed(isOpen: boolean): void;
  /** The session is over: the server sends nothing more until somebody signs in. */
  ended(): void;
}

/** Begins to listen to a stream. */
export type Stream = (listener: Listener) => void;
/** What a shared worker passes on to its pages. */
export type Relayed = { heard: string; atMs: number } | { isOpen: boolean } | { ended: true };
/** What a page says to the worker when it is left. */
export const LEFT = "left";

/** Returns the stream of a path. */
export function streamOf(path: string): Stream {
  return (listener) => open(path, listener);
}

function open(path: string, listener: Listener): void {
  const source = new EventSource(path);
  const openLater = (): void => {
    source.close();
    setTimeout(() => open(path, listener), RECONNECT_MS);
  };
  source.onopen = () => listener.changed(true);
  source.onmessage = (event: MessageEvent<string>) => listener.heard(event.data, Date.now());
  source.addEventListener("ended", () => {
    listener.ended();
    openLater();
  });
  source.onerror = () => {
    listener.changed(false);
    // The browser reconnects by itself and names its last message, unless the request was refused: the session may have ended.
    if (source.readyState !== EventSource.CLOSED) return;
    openLater();
    // Without a session the home page redirects to the sign-in page.
    fetch("/", { headers: { Accept: "text/html" }, redirect: "manual" })
      .then((home) => home.type === "opaqueredirect" && listener.ended())
      .catch(() => undefined);
  };
}
