/// <reference types="node" preserve="true" />
// dultra/server: an OpenAI-compatible server, alone or inside another application.
export { type LogEntry, Server, type ServerOptions } from './app';
export { type Listening, type ListenOptions, listen } from './listen';
export type { ServedModel } from './models';
