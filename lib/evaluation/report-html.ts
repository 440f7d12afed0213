// HTML of the report's parts: escaped text, tables and their style.
import { pageStyle } from '../package';

const ESCAPES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

export const escapeHtml = (text: string) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

/** JSON that a script element can hold whatever texts are in it. */
export const embedJson = (value: unknown) =>
  JSON.stringify(value)
    .replace(/</g, '\\u003c')
    .replace(/\u2028/g, '\\u2028')
    .replace(/\u2029/g, '\\u2029');

export const percent = (share: number) => (100 * share).toFixed(1);

/** The style of reports. */
export const reportStyle = (): string => pageStyle('lib', 'evaluation', 'report-page.css');

/** A table that scrolls sideways. @param rows HTML of whole rows */
export const table = (head: readonly string[], rows: readonly string[]): string =>
  `<div class="scroll" tabindex="0"><table><thead><tr>` +
  `${head.map((title) => `<th scope="col">${title}</th>`).join('')}</tr></thead>` +
  `<tbody>${rows.join('')}</tbody></table></div>`;

/** A row of {@link table}: HTML of the first cell and of the others. */
export const tableRow = (first: string, cells: readonly string[], isBest = false): string =>
  `<tr${isBest ? ' class="best"' : ''}><th scope="row">${first}</th>` +
  `${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`;
