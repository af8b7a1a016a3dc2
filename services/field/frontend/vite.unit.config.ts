import { defineConfig } from "vite";

// The unit's page. It shares no built file with her app: each opens without a network by files of its own.
export default defineConfig({
  base: "/static/",
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    rolldownOptions: {
      input: { unit: "src/unit/page.ts" },
      output: { entryFileNames: "[name].js", assetFileNames: "unit[extname]" },
      checks: { pluginTimings: false },
    },
  },
});
