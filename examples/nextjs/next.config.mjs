/** dultra has a native addon and a model's files, which no bundle can hold. */
export default { serverExternalPackages: ['dultra'] };
