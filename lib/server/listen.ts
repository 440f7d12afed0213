// A server on a port.

import type { Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import { Server, type ServerOptions } from './app';

/** Where a server listens. */
export interface ListenOptions extends Partial<ServerOptions> {
  /** One that has been made; its options are its own. Default: a new one of the other options. */
  server?: Server | undefined;
  /** Default "127.0.0.1": this machine alone. */
  host?: string | undefined;
  /** 0: any that is free. Default 8242. */
  port?: number | undefined;
}

/** A server that listens. */
export interface Listening {
  server: Server;
  url: string;
  /**
   * Refuses new requests, and waits up to `ms` (default 30 s) for those under way; then the port is free.
   * @returns whether all were done in time
   */
  close(ms?: number): Promise<boolean>;
}

/**
 * Listens on a port.
 * @throws RangeError for options; the error of the system where the port is taken.
 */
export async function listen({
  host = '127.0.0.1',
  port = 8242,
  server: given,
  ...options
}: ListenOptions): Promise<Listening> {
  const server = given ?? new Server({ ...options, models: options.models ?? {} });
  // Slow heads are looked for often enough that the timeout means something.
  const serverOptions = { connectionsCheckingInterval: 5000 };
  const http = createAdaptorServer({ fetch: server.fetch, serverOptions }) as HttpServer;
  http.headersTimeout = 10_000;
  http.requestTimeout = 60_000;
  http.keepAliveTimeout = 65_000;
  http.maxConnections = 1024;
  await new Promise<void>((resolve, reject) => {
    http.once('error', reject);
    http.listen(port, host, () => {
      http.off('error', reject);
      resolve();
    });
  });
  const { port: bound } = http.address() as AddressInfo;
  return {
    server,
    url: `http://${host.includes(':') ? `[${host}]` : host}:${bound}`,
    async close(ms = 30_000) {
      const inTime = await server.drain(ms);
      const closed = new Promise<void>((resolve) => http.close(() => resolve()));
      http.closeIdleConnections();
      // What was written is on its way; a reader that takes nothing holds up nobody.
      setTimeout(() => http.closeAllConnections(), 1000).unref();
      await closed;
      server.dispose();
      return inTime;
    },
  };
}
