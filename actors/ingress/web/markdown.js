// Markdown to safe HTML. A model's text is not to be trusted: no scripts, no styles, no pictures from elsewhere, links in a new tab.

import { marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

// HTML in the text is shown as text.
marked.use({ gfm: true, breaks: true, renderer: { html: ({ text }) => escape(text) } });

function escape(text) {
  return text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

/** Puts `text` into `element`, rendered, with a button on each code block that copies it. */
export function render(element, text) {
  element.innerHTML = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const block of element.querySelectorAll("pre")) {
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "copy";
    copy.textContent = "Copy";
    copy.addEventListener("click", () => copyText(block.querySelector("code").textContent, copy));
    block.append(copy);
  }
}

/** Copies `text` and says so on `button` for a moment. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = label), 1500);
}
