# CMakeLists.txt is the build; this only lets node-gyp, and so prebuildify, start it.
{
  'targets': [{
    'target_name': 'dultra',
    'type': 'none',
    'actions': [{
      'action_name': 'cmake',
      'message': 'CMakeLists.txt -> build/Release/dultra.node',
      'inputs': ['CMakeLists.txt'],
      # Never made, so the action always runs and CMake decides what is stale.
      'outputs': ['<(module_root_dir)/build/Release/always'],
      'action': ['node', 'scripts/build-native.cjs'],
      'msvs_cygwin_shell': 0,
    }],
  }],
}
