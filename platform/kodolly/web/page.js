// What Gradio's own page cannot do: remember the talk over a reload, wait for a restarted server,
// and speak Korean where Gradio's words are fixed in English. KODOLLY is set by head_html().
(() => {
  const korean = (navigator.language || "ko").toLowerCase().startsWith("ko");
  const KEY = "kodolly.page";

  // One copy of the conversation and the settings for this tab; gone when the tab is closed.
  let restored = false;
  window.kodolly = {
    save: (...values) => {
      if (!restored) return;
      try {
        sessionStorage.setItem(KEY, JSON.stringify(values));
      } catch {
        // Full or forbidden: the page works without it.
      }
    },
    restore: (...values) => {
      setTimeout(() => (restored = true), 500); // the page's own first values are no change
      try {
        const saved = JSON.parse(sessionStorage.getItem(KEY));
        return Array.isArray(saved) && saved.length === values.length ? saved : values;
      } catch {
        return values;
      }
    },
  };

  // While our server restarts, calls wait for it instead of failing for good.
  const banner = document.createElement("div");
  banner.id = "kd-lost";
  banner.hidden = true;
  banner.setAttribute("role", "status");
  banner.textContent = KODOLLY.reconnecting[korean ? "ko" : "en"];
  const patient = (input) =>
    /\/gradio_api\/(run|queue\/join|cancel)/.test(String(input?.url ?? input));
  const fetchOnce = window.fetch.bind(window);
  window.fetch = async (input, init) => {
    for (;;) {
      try {
        const response = await fetchOnce(input, init);
        banner.hidden = true;
        return response;
      } catch (error) {
        if (!patient(input) || init?.signal?.aborted) throw error;
        document.body.append(banner);
        banner.hidden = false;
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
  };

  // Names for buttons that have none, and Korean for Gradio's fixed words.
  const name = (root) => {
    const names = KODOLLY.names[korean ? "ko" : "en"];
    for (const [selector, label] of Object.entries(names)) {
      for (const element of root.querySelectorAll(selector)) {
        if (element.getAttribute("aria-label") !== label) {
          element.setAttribute("aria-label", label);
          element.title = label;
        }
      }
    }
  };
  const translated = (text) => {
    for (const [english, ours] of Object.entries(KODOLLY.fixed)) {
      if (text.startsWith(english)) return ours + text.slice(english.length);
    }
    return text;
  };
  const translate = (root) => {
    for (const attribute of ["aria-label", "title"]) {
      for (const element of root.querySelectorAll(`[${attribute}]`)) {
        const text = element.getAttribute(attribute);
        const ours = translated(text);
        if (ours !== text) element.setAttribute(attribute, ours);
      }
    }
    for (const element of root.querySelectorAll(".toast-title, .toast-text, .toast-text *")) {
      if (element.childElementCount) continue;
      const ours = translated(element.textContent.trim());
      if (ours !== element.textContent.trim()) element.textContent = ours;
    }
  };
  let due = false;
  const tidy = () => {
    due = false;
    name(document);
    if (korean) translate(document);
  };
  new MutationObserver(() => {
    if (due) return;
    due = true;
    setTimeout(tidy, 150);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
