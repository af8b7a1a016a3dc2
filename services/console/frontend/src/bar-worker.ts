// The bar's stream, once for all pages of a user in this browser: a browser opens six connections to a server, and a page beyond them
// would wait for ever, also with an answer to an incident. As a shared worker it is the same for all windows, and no window delays it.

import { LEFT, streamOf } from "./stream";
import type { Relayed } from "./stream";

const pages = new Set<MessagePort>();
const path = `/stream/bar?user=${encodeURIComponent(self.name)}`;
let hasBegun = false;
let last: Relayed | undefined;

function relay(message: Relayed): void {
  for (const page of pages) page.postMessage(message);
}

function begin(): void {
  hasBegun = true;
  streamOf(path)({
    heard: (heard, atMs) => relay((last = { heard, atMs })),
    changed: (isOpen) => relay({ isOpen }),
    ended: () => relay({ ended: true }),
  });
}

addEventListener("connect", (event) => {
  const page = (event as MessageEvent).ports[0];
  if (!page) return;
  pages.add(page);
  page.onmessage = ({ data }) => data === LEFT && pages.delete(page);
  if (last) page.postMessage(last);
  if (!hasBegun) begin();
});
