import { defineConfig } from "vite";

// File names are fixed, so that a fresh build of the same sources can be compared with the one that is committed.
const names = { entryFileNames: "[name].js", chunkFileNames: "[name].js", assetFileNames: "[name][extname]" };

export default defineConfig({
  base: "/static/",
  build: {
    outDir: "../static",
    emptyOutDir: false, // the base map is there, which isn't made here
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // the first that know light-dark()
    modulePreload: false,
    cssCodeSplit: false,
    chunkSizeWarningLimit: 2_000,
    rolldownOptions: { input: { live: "src/live.ts", bar: "src/bar.ts", "bar-worker": "src/bar-worker.ts", replay: "src/replay.ts", waterfall: "src/waterfall.ts" }, output: names, checks: { pluginTimings: false } },
  },
  worker: { format: "es", rolldownOptions: { output: { ...names, entryFileNames: "map-worker.js" }, checks: { pluginTimings: false } } },
});
