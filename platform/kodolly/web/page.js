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
      restored = true; // before this, the page's own first values are no change
      try {
        const saved = JSON.parse(sessionStorage.getItem(KEY));
        return Array.isArray(saved) && saved.length === values.length ? saved : values;
      } catch {
        return values;
      }
    },
  };

  // While our server restarts, calls wait for it instead of failing for good ...
  const banner = document.createElement("div");
  banner.id = "kd-lost";
  banner.hidden = true;
  banner.setAttribute("role", "status");
  banner.textContent = KODOLLY.reconnecting[korean ? "ko" : "en"];
  const fetchOnce = window.fetch.bind(window);
  const fetchPatiently = async (input, init) => {
    for (;;) {
      try {
        const response = await fetchOnce(input, init);
        banner.hidden = true;
        return response;
      } catch (error) {
        if (init?.signal?.aborted) throw error;
        document.body.append(banner);
        banner.hidden = false;
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
  };

  // ... and an answer that was under way ends where it is, as after Stop. `response` is Gradio's
  // event stream: lines of `data: {msg, event_id, ...}`.
  const endCalmly = (response) => {
    const running = new Set();
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    let line = "";
    let closed = false;
    let broken = false;
    const look = (bytes) => {
      const lines = (line + decoder.decode(bytes, { stream: true })).split("\n");
      line = lines.pop();
      for (const text of lines.filter((text) => text.startsWith("data:"))) {
        const { msg, event_id: id } = JSON.parse(text.slice(5));
        if (msg === "close_stream") closed = true;
        else if (msg === "unexpected_error") broken = true;
        else if (id && msg === "process_completed") running.delete(id);
        else if (id) running.add(id);
      }
    };
    const end = (controller) => {
      const last = [...running].map((id) => ({
        msg: "process_completed",
        event_id: id,
        success: true,
        output: { data: KODOLLY.unchanged, is_generating: false },
      }));
      for (const message of [...last, { msg: "close_stream", event_id: null }]) {
        const event = `data: ${JSON.stringify(message)}\n\n`;
        controller.enqueue(new TextEncoder().encode(event));
      }
    };
    const body = new ReadableStream({
      async pull(controller) {
        let step;
        try {
          step = await reader.read();
        } catch (error) {
          if (error.name === "AbortError") return controller.error(error);
          step = { done: true };
        }
        if (!step.done) look(step.value);
        if (!step.done && !broken) return controller.enqueue(step.value);
        if (!closed) end(controller);
        controller.close();
        if (broken) reader.cancel();
      },
      cancel: (reason) => reader.cancel(reason),
    });
    return new Response(body, { status: response.status, headers: response.headers });
  };
  window.fetch = async (input, init) => {
    const path = String(input?.url ?? input);
    if (/\/gradio_api\/(run|queue\/join|cancel)/.test(path)) return fetchPatiently(input, init);
    const response = await fetchOnce(input, init);
    return response.ok && path.includes("/gradio_api/queue/data") ? endCalmly(response) : response;
  };

  // An empty question stays here: while the server looks at one, Gradio drops the next.
  const keepEmpty = (event) => {
    const box = event.target.closest?.("#kd-input")?.querySelector("textarea");
    if (!box || box.value.trim()) return;
    const sends =
      event.type === "click"
        ? event.target.closest(".submit-button")
        : event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (!sends) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  };
  for (const type of ["keydown", "keypress", "click"]) {
    window.addEventListener(type, keepEmpty, true);
  }

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
  }).observe(document.documentElement, {
    childList: true,
    subtree: true,
    attributeFilter: ["aria-label", "title"], // Gradio writes a label anew as its answer grows
  });
})();
