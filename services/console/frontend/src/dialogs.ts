// Dialogs of the live page that ask for a cause, a reason or a legal basis.

import { byId } from "./page";

/** Opens a dialog with a form. Returns its fields once it is sent; undefined where it was cancelled. */
export function ask(id: string, what: string): Promise<URLSearchParams | undefined> {
  const dialog = byId<HTMLDialogElement>(id);
  const form = dialog.querySelector("form") as HTMLFormElement;
  const named = dialog.querySelector(".what");
  if (named) named.textContent = what;
  // The legal basis stays as it was last chosen; a cause or a reason is never another incident's.
  if (id !== "ask-names") form.reset();
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const fields = [...new FormData(form)].map(([name, value]): [string, string] => [name, String(value)]);
        resolve(dialog.returnValue === "send" ? new URLSearchParams(fields) : undefined);
      },
      { once: true },
    );
  });
}
