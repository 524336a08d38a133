// What the live network uses of the page's other scripts (draw.js, page.js).

declare function html(tag: string, attributes?: Record<string, unknown>, ...children: unknown[]): any;
declare function svg(tag: string, attributes?: Record<string, unknown>, ...children: unknown[]): any;
declare function ticks(low: number, high: number, count: number): number[];
declare function shown(value: number, digits?: number): string;
declare function percent(share: number): string;
declare function classMark(k: number, size: number): string;
declare function classColour(k: number): string;
declare function redrawOnResize(host: Element, draw: () => void): void;
declare function say(key: string, values?: Record<string, unknown>): string;
declare function remembered(): Record<string, string>;
declare function remember(values: Record<string, string>): void;
