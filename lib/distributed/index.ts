/** Several processes that train or measure one model together: started by mpirun or srun, connected by MPI. */
export { type MachineShare, machineShare } from './machine';
export { currentGroup, findMpi, init, launchedRank, type MpiInfo, waitBeforeFailure } from './mpi';
export { firstAlone, gatherJson, type ProcessGroup } from './process-group';
