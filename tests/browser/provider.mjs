// A certified OpenID provider, oidc-provider, by HTTPS with real sign-in forms. One line of JSON in for each command, one out.
// Arguments: port, certificate, key, and the callback addresses of its clients, by client id, as JSON.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { Provider } from "oidc-provider";

// The provider writes its notices to the console; answers alone go to the output.
for (const kind of ["log", "info", "warn"]) console[kind] = console.error;
const answer = (result) => process.stdout.write(`${JSON.stringify({ result: result ?? null })}\n`);
const [port, cert, key, callbacks] = process.argv.slice(2);
const accounts = new Map(); // claims by account id; a closed account is none
const seen = { challenges: [], refreshed: 0, revoked: 0 };
let lie = {}; // claims that the provider's ID tokens have in place of the true ones
const signing = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });

const provider = new Provider(`https://localhost:${port}`, {
  clients: Object.entries(JSON.parse(callbacks)).map(([id, uri]) => ({
    client_id: id,
    client_secret: "a secret: with/characters",
    redirect_uris: [uri],
    grant_types: id === "without-refresh" ? ["authorization_code"] : ["authorization_code", "refresh_token"],
  })),
  jwks: { keys: [{ ...signing, kid: "first", use: "sig", alg: "RS256" }] },
  cookies: { keys: [randomBytes(32).toString("hex")] },
  claims: { openid: ["sub"], profile: ["preferred_username", "roles"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: { revocation: { enabled: true } },
  ttl: { IdToken: (ctx, token, client) => (client.clientId === "without-refresh" ? 30 : 3600), RefreshToken: 43200 },
  issueRefreshToken: async (ctx, client) => client.grantTypeAllowed("refresh_token"),
  rotateRefreshToken: true,
  findAccount: async (ctx, id) => (accounts.has(id) ? { accountId: id, claims: async () => ({ sub: id, ...accounts.get(id) }) } : undefined),
  // The agency's own client needs no consent of its officers.
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope("openid profile");
    await grant.save();
    return grant;
  },
});
provider.on("authorization.success", (ctx) => seen.challenges.push(ctx.oidc.params.code_challenge_method));
provider.on("grant.success", (ctx) => (seen.refreshed += ctx.oidc.params.grant_type === "refresh_token" ? 1 : 0));
provider.on("refresh_token.destroyed", () => (seen.revoked += 1));
const { IdToken } = provider;
const issue = IdToken.prototype.issue;
IdToken.prototype.issue = async function (given) {
  if (lie.nonce) this.set("nonce", lie.nonce);
  if (lie.aud) this.client = new Proxy(this.client, { get: (client, name) => (name === "clientId" ? lie.aud : Reflect.get(client, name, client)) });
  return issue.call(this, given);
};

const commands = {
  account: ({ id, claims }) => void (claims ? accounts.set(id, claims) : accounts.delete(id)),
  lie: ({ claims }) => void (lie = claims),
  seen: () => seen,
};
const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, provider.callback());
await new Promise((resolve) => server.listen(Number(port), "localhost", resolve));
answer("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...given } = JSON.parse(line);
  answer(commands[command](given));
}
process.exit(0);
