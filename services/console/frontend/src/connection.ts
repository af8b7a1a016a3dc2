// A page's stream of messages, and what the page says about it.

import { byId } from "./page";
import type { Stream } from "./stream";
import type { Words } from "./words";

/** Time without a message after which the connection counts as lost, in ms. */
const SILENT_MS = 12_000;
/** Sources of the incidents: without one of them the page may lack an incident or its deadline. */
const OF_INCIDENTS = ["incidents", "steps"];

/** What each message says about the stream itself. */
export interface Beat {
  /** Time by the mesh's clock, in ms since 1970 UTC. */
  now: number;
  /** Speed of the mesh's clock: 1 but in a replay. */
  rate: number;
  /** Sources that the console can't read, each with the reason. */
  away: Record<string, string>;
}

export class Connection<Message extends Beat> {
  #shown = byId("connection");
  #heardMs = 0;
  #isOpen = false;
  #hasEnded = false;
  #beat: Beat = { now: 0, rate: 1, away: {} };

  constructor(
    private readonly words: Words,
    private readonly receive: (message: Message) => void,
    private readonly stream: Stream,
    private readonly ended: () => void,
  ) {}

  /** Time by the mesh's clock, in ms since 1970 UTC; this computer's before the first message. */
  readonly now = (): number => (this.#heardMs ? this.#beat.now + (Date.now() - this.#heardMs) * this.#beat.rate : Date.now());

  /** Whether a message has come since the page was opened. */
  get hasHeard(): boolean {
    return this.#heardMs > 0;
  }

  /** Whether the incidents that the page shows, and their deadlines, are those of this moment. */
  get isCurrent(): boolean {
    return this.hasHeard && !this.#isLost && !OF_INCIDENTS.some((source) => source in this.#beat.away);
  }

  get #isLost(): boolean {
    return !this.#isOpen || this.#hasEnded || Date.now() - this.#heardMs > SILENT_MS;
  }

  open(): void {
    this.stream({
      heard: (data, atMs) => {
        const message = JSON.parse(data) as Message;
        this.#heardMs = atMs;
        this.#beat = message;
        this.#isOpen = true;
        this.#hasEnded = false;
        this.receive(message);
        this.show();
      },
      changed: (isOpen) => {
        this.#isOpen = isOpen;
        if (!isOpen) this.show();
      },
      ended: () => {
        this.#hasEnded = true;
        this.ended();
        this.show();
      },
    });
  }

  /** Says whether the page is current, and which part isn't. */
  show(): void {
    const parts = Object.keys(this.#beat.away);
    const state = this.#isLost ? (this.#heardMs ? "lost" : "connecting") : parts.length ? "part_away" : "connected";
    const key = this.#hasEnded ? "signed_out" : state;
    const said = this.words.say(key);
    const shown = key === "part_away" ? `${said}: ${parts.map((part) => this.words.say(`source_${part}`)).join(", ")}` : said;
    if (this.#shown.textContent !== shown) this.#shown.textContent = shown;
    this.#shown.className = `connection ${key === "connected" ? "ok" : key === "connecting" ? "wait" : "lost"}`;
  }
}
