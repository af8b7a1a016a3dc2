import { defineConfig } from "vite";

// The service worker of the unit's page is one classic script, since not every browser runs modules there.
export default defineConfig({
  base: "/",
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    rolldownOptions: {
      input: { "unit-service-worker": "src/unit/worker.ts" },
      output: { format: "iife", entryFileNames: "[name].js" },
      checks: { pluginTimings: false },
    },
  },
});
