// The bar at the bottom of each screen: the emergency call to the police by the app, and 112 by telephone and text message.

import type { Measured } from "./reporting";

const GUARD_MS = 700; // a double touch of the button isn't a decision to send
const KNOWN_PLACE_MS = 180_000; // an older position is unknown

const find = <E extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as E;

export class EmergencyBar {
  private openedMs = 0;

  /** `send` sends the visible panic. */
  constructor(
    private readonly t: (name: string) => string,
    send: () => void,
  ) {
    find("panic").addEventListener("click", () => this.ask(true));
    find("panic-no").addEventListener("click", () => this.ask(false));
    find("panic-yes").addEventListener("click", () => {
      if (performance.now() - this.openedMs < GUARD_MS) return;
      this.ask(false);
      send();
    });
    // A locked phone in a pocket mustn't be one touch away from a call.
    document.addEventListener("visibilitychange", () => document.visibilityState !== "visible" && this.asks && this.ask(false));
  }

  /** Shows the button of the panic, or only 112 where the phone isn't connected. */
  allowPanic(allowed: boolean): void {
    if (!allowed && this.asks) this.ask(false);
    find("bar").classList.toggle("only-112", !allowed);
    find("panic").hidden = !allowed || this.asks;
  }

  /** Renews the prepared text message. `position` is the phone's newest one. */
  prepare(position: Measured | undefined): void {
    const known = position && Date.now() - position.at_ms < KNOWN_PLACE_MS ? position : undefined;
    const words = [this.t("sms_text"), ...(known ? [this.place(known)] : [])].join(" ");
    const link = `sms:112${isApple() ? "&" : "?"}body=${encodeURIComponent(words)}`;
    if (find("text-112").getAttribute("href") !== link) find("text-112").setAttribute("href", link);
  }

  private get asks(): boolean {
    return !find("panic-sure").hidden;
  }

  private ask(asks: boolean): void {
    this.openedMs = performance.now();
    find("panic-sure").hidden = !asks;
    find("panic-yes").hidden = !asks;
    find("panic").hidden = asks;
    find(asks ? "panic-yes" : "panic").focus();
  }

  private place({ lat, lon, accuracy }: Measured): string {
    return this.t("sms_place")
      .replace("{place}", `${lat.toFixed(5)}, ${lon.toFixed(5)}`)
      .replace("{accuracy}", String(Math.max(1, Math.round(accuracy))));
  }
}

// Apple's telephones begin the text with another character than the standard (RFC 5724) has.
function isApple(): boolean {
  return /iPhone|iPad|iPod|Macintosh/.test(navigator.userAgent);
}
