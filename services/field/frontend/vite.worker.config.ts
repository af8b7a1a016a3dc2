import { defineConfig } from "vite";

// The service worker is one classic script, since not every browser runs modules there.
export default defineConfig({
  base: "/",
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    rolldownOptions: {
      input: { "service-worker": "src/worker.ts" },
      output: { format: "iife", entryFileNames: "[name].js" },
      checks: { pluginTimings: false },
    },
  },
});
