// Web push: the subscription of this phone, for both apps.

import { call } from "./server";

/** Tag of the line that tells of news. A further one takes the place of the earlier. */
export const NEWS_TAG = "news";

/** Subscribes this phone to an app's push messages if the user has allowed them. `button`, which asks, shows while that can be done. */
export async function subscribe(path: string, button: HTMLElement): Promise<void> {
  const can = "PushManager" in window && "Notification" in window;
  button.hidden = !can || Notification.permission === "granted";
  if (!can || Notification.permission !== "granted") return;
  const { key } = await call<{ key: string }>("GET", path);
  const registration = await navigator.serviceWorker.ready;
  const options = { userVisibleOnly: true, applicationServerKey: key };
  const subscription = await registration.pushManager.subscribe(options).catch(async () => {
    await (await registration.pushManager.getSubscription())?.unsubscribe(); // of an earlier key of the server
    return registration.pushManager.subscribe(options);
  });
  const { endpoint, keys } = subscription.toJSON();
  await call("POST", path, { endpoint, p256dh: keys?.["p256dh"], auth: keys?.["auth"] });
}
