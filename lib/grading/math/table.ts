/** A table in which a text finds its own entry alone, not what every object has, such as "constructor". */
export const table = <T>(entries: Readonly<Record<string, T>>): Readonly<Record<string, T>> =>
  Object.assign(Object.create(null), entries);
